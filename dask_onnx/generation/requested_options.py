"""Options of one generation, as a caller gives them, checked against a generator's settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.generation.batch_loop import Limits, LogitsFunction
from dask_onnx.generation.beam_search import BeamRule, beam_rule
from dask_onnx.generation.generation_options import GenerationOptions, check_count, stop_texts
from dask_onnx.generation.generator_settings import GeneratorSettings, token_numbers
from dask_onnx.generation.grammar_constraints import json_constraint, regex_constraint
from dask_onnx.generation.row_constraints import Constraint, choice_constraint
from dask_onnx.generation.sampling import Sampling
from dask_onnx.generation.tokenizer_checks import codec_of, tokenizer_name


class WritingOptions(TypedDict, total=False):
    """Options of what is written after a prompt; see `Generator.generate`."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    eos: Any
    stop: Any
    change_logits: LogitsFunction | None
    num_beams: int
    choices: Iterable[Any] | None
    json_schema: Mapping[str, Any] | None
    regex: str | None


def requested_options(
    settings: GeneratorSettings,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos: Any = None,
    stop: Any = (),
    batch_rows: int | None = None,
    change_logits: LogitsFunction | None = None,
    choices: Any = None,
    json_schema: Any = None,
    regex: Any = None,
    num_beams: Any = 1,
    length_penalty: Any = 1.0,
    early_stopping: Any = False,
) -> GenerationOptions:
    """Return checked options of a generation. Runs nothing.

    Parameters
    ----------
    settings : GeneratorSettings
        Settings of the generator.
    max_new_tokens, temperature, top_k, top_p, seed, eos, stop, batch_rows
        As for `Generator.generate`.
    change_logits, choices, json_schema, regex, num_beams, length_penalty, early_stopping
        As for `Generator.generate`.

    Raises
    ------
    InputError
        An option is out of range, or does not fit another one.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    ends = settings.eos if eos is None else token_numbers(eos, settings.content)
    texts = stop_texts(stop)
    if texts and settings.content is None:
        raise InputError(
            "stop was given, and the generator has no tokenizer to find texts with",
            "give the generator a tokenizer, or end rows by eos",
            option="stop",
            suggestions=[Suggestion("tokenizer")],
        )
    limits = Limits(max_new_tokens, ends, settings.context)
    given = {"choices": choices, "json_schema": json_schema, "regex": regex}
    constraint = _constraint(settings, given, limits, has_stop=bool(texts))
    beams = beam_rule(num_beams, length_penalty, early_stopping)
    if beams is not None:
        _check_beams(settings, beams, given)
    return GenerationOptions(limits, sampling, texts, batch_rows, change_logits, constraint, beams)


def _check_beams(settings: GeneratorSettings, beams: BeamRule, given: Mapping[str, Any]) -> None:
    """Refuse a beam search of constrained rows, or by an engine that has none.

    Raises
    ------
    InputError
        A constraint was given, or the caller wants ONNX Runtime GenAI.
    """
    names = [name for name, value in given.items() if value is not None]
    folder = settings.engine.folder
    if folder is not None and folder.is_required:
        names.append("engine")
    if names:
        raise InputError(
            f"{names[0]} and num_beams={beams.beams} were given, which do not go together",
            f"leave {names[0]} out, or search nothing: num_beams=1",
            option=names[0],
            suggestions=[Suggestion("num_beams", 1)],
        )


def _constraint(
    settings: GeneratorSettings, given: Mapping[str, Any], limits: Limits, *, has_stop: bool
) -> Constraint | None:
    """Return the constraint of rows; None if no option gives one.

    Raises
    ------
    InputError
        Two options give one, a stop text might cut its texts, or the limits end rows before them.
    """
    names = [name for name, value in given.items() if value is not None]
    if not names:
        return None
    if len(names) > 1 or has_stop:
        other = names[1] if len(names) > 1 else "stop"
        raise InputError(
            f"{names[0]} and {other} were given",
            f"leave {other} out: a row ends where its text is complete",
            option=other,
        )
    check_count("max_new_tokens", limits.max_new_tokens)
    codec = codec_of(settings.content)
    name = tokenizer_name(settings.content)
    if names[0] == "json_schema":
        return json_constraint(given["json_schema"], codec, name)
    if names[0] == "regex":
        return regex_constraint(given["regex"], codec, name)
    found = choice_constraint(given["choices"], codec, limits.eos, settings.form.vocabulary)
    longest = found.longest or 0
    if longest > limits.max_new_tokens:
        raise InputError(
            f"the longest choice has {longest:,} tokens, and max_new_tokens is "
            f"{limits.max_new_tokens:,}",
            f"give at least {longest:,}",
            option="max_new_tokens",
            numbers={"tokens": longest},
            suggestions=[Suggestion("max_new_tokens", longest)],
        )
    return found
