"""Options of generation, checked against each other and against the model."""

from __future__ import annotations

import json
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask.base import tokenize

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.generation.batch_loop import Limits, LogitsFunction
from dask_onnx.generation.beam_search import BeamRule
from dask_onnx.generation.decoder_starts import ToldStart, told_start
from dask_onnx.generation.row_constraints import Constraint
from dask_onnx.generation.sampling import Sampling

MAX_ROWS = 32
"""Rows of a batch by default, where memory suffices."""
_SETTINGS = ("generation_config.json", "config.json", "genai_config.json")
"""Files beside a model that tell its end tokens and its context."""
_CONTEXTS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "context_length",
)
"""Keys under which they tell the context."""


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Options of one generation.

    Raises
    ------
    InputError
        An option is out of range.
    """

    limits: Limits
    """Limits at which rows end."""
    sampling: Sampling
    """Rule of the next token."""
    stop: tuple[str, ...] = ()
    """Texts at which rows end; they are no part of the result."""
    batch_rows: int | None = None
    """Rows of a batch at most; None for as many as memory holds, up to `MAX_ROWS`."""
    change_logits: LogitsFunction | None = None
    """Caller's function that changes logits before a token is chosen."""
    constraint: Constraint | None = None
    """Texts that rows are held to; None for all."""
    beams: BeamRule | None = None
    """Options of beam search; None without one."""

    def __post_init__(self) -> None:
        check_count("max_new_tokens", self.limits.max_new_tokens)
        if self.batch_rows is not None:
            check_count("batch_rows", self.batch_rows)
        if self.change_logits is not None and not callable(self.change_logits):
            raise InputError(
                f"change_logits is of type {type(self.change_logits).__name__}",
                "give a function of tokens and logits",
                option="change_logits",
            )
        if self.beams is not None:
            self._check_beams()

    def _check_beams(self) -> None:
        """Refuse options that have no meaning with several beams."""
        reasons = {
            "temperature": "draws tokens" if not self.sampling.is_greedy else "",
            "stop": "ends a row at a text" if self.stop else "",
        }
        for option, reason in reasons.items():
            if reason:
                raise InputError(
                    f"{option} {reason}, and a search of several beams ends them at tokens and "
                    "takes the likeliest",
                    f"leave {option} out, or search nothing: num_beams=1",
                    option=option,
                    suggestions=[Suggestion("num_beams", 1)],
                )

    @property
    def rows_of_prompt(self) -> int:
        """Rows of a batch that each prompt takes."""
        return 1 if self.beams is None else self.beams.beams

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        function = self.change_logits
        named = None if function is None else tokenize(function)
        kept = (self.limits, self.sampling, self.stop, self.batch_rows, self.constraint)
        return repr((kept, self.beams)), named


def check_count(option: str, value: Any) -> None:
    """Refuse anything but an integer from 1 on.

    Raises
    ------
    InputError
        The value is none.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or value < 1:
        raise InputError(
            f"{option} is {value!r}",
            "give an integer from 1 on",
            option=option,
            suggestions=[Suggestion(option)],
        )


def check_context(context: Any, table: int | None) -> None:
    """Refuse a context that is no count, or longer than the model's table of positions.

    Raises
    ------
    InputError
        It is.
    """
    check_count("context", context)
    if table is not None and context > table:
        raise InputError(
            f"context is {context:,}, and the model has {table:,} positions",
            f"give at most {table:,}, or leave it out",
            option="context",
            numbers={"context": context, "positions": table},
            suggestions=[Suggestion("context", table)],
        )


def stop_texts(stop: Any) -> tuple[str, ...]:
    """Return the option `stop` as a tuple of texts.

    Raises
    ------
    InputError
        It is no text and no sequence of texts, or one is empty.
    """
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(text, str) and text for text in texts):
        raise InputError(
            f"stop is {stop!r}",
            "give a text, or a sequence of texts, none of them empty",
            option="stop",
        )
    return texts


def end_tokens(eos: Any, tokens: Mapping[str, int] | None, option: str = "eos") -> tuple[int, ...]:
    """Return the option `eos` as token numbers, ascending.

    Parameters
    ----------
    eos : int, str or sequence of these
        Numbers of tokens, or tokens of the tokenizer.
    tokens : mapping of str to int, optional
        The tokenizer's vocabulary; None without a tokenizer.
    option : str
        Name of the option in errors.

    Raises
    ------
    InputError
        A token is not in the vocabulary, or neither a number nor a text.
    """
    given = [eos] if isinstance(eos, str | numbers.Integral) else list(_items(eos, option))
    found = set()
    for each in given:
        is_whole = isinstance(each, numbers.Integral) and not isinstance(each, bool)
        if is_whole and int(each) >= 0:
            found.add(int(each))
            continue
        number = (tokens or {}).get(each) if isinstance(each, str) else None
        if number is None:
            known = "there is no tokenizer" if tokens is None else "the tokenizer has no such token"
            raise InputError(
                f"{option} is {each!r}; {known if isinstance(each, str) else 'it is no token'}",
                "give the number of the token, or a token of the tokenizer",
                option=option,
            )
        found.add(number)
    return tuple(sorted(found))


def _items(eos: Any, option: str) -> Iterable[Any]:
    if isinstance(eos, Iterable):
        return eos
    raise InputError(
        f"{option} is {eos!r}",
        "give a token's number, a token, or a sequence of these",
        option=option,
    )


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """End tokens and context that files beside the model tell."""

    eos: tuple[int, ...] = ()
    """Numbers of end tokens."""
    context: int | None = None
    """Tokens of a row at most; None if nothing tells."""
    start: ToldStart = field(default_factory=ToldStart)
    """Tokens that a decoder with an encoder begins with."""


def folder_settings(path: str | None) -> FolderSettings:
    """Return what ``generation_config.json``, ``config.json`` and ``genai_config.json`` beside a
    model tell: files of Hugging Face, and of ONNX Runtime GenAI.

    Parameters
    ----------
    path : str or None
        Path of the model's file. The folder above it is searched too if its own is called "onnx",
        as in exports of Hugging Face. Nothing is read from URLs.
    """
    if path is None or is_url(path):
        return FolderSettings()
    folder = Path(path).parent
    eos: tuple[int, ...] = ()
    context, read = None, list[Mapping[str, Any]]()
    for place in (folder, folder.parent) if folder.name == "onnx" else (folder,):
        for name in _SETTINGS:
            settings = _read(place / name)
            eos = eos or _whole_numbers(settings.get("eos_token_id"))
            found = (_whole_numbers(settings.get(key)) for key in _CONTEXTS)
            context = context or next((each[0] for each in found if each and each[0] > 1), None)
            read.append(settings)
    return FolderSettings(eos, context, told_start(read))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such file, or not JSON: files of other programs
        return {}
    if not isinstance(found, Mapping):
        return {}
    inner = found.get("model") if path.name == "genai_config.json" else None
    return inner if isinstance(inner, Mapping) else found


def _whole_numbers(value: Any) -> tuple[int, ...]:
    given: Sequence[Any] = value if isinstance(value, list) else [value]
    return tuple(
        each for each in given if isinstance(each, int) and not isinstance(each, bool) and each >= 0
    )
