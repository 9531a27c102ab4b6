"""Settings of a generator: what the graph, the files beside the model and the caller tell of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dask_onnx.core.errors import InputError
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.generation.array_encoders import recognise_source
from dask_onnx.generation.context_length import context_of_graph
from dask_onnx.generation.decoder_form import DecoderForm, recognise_decoder
from dask_onnx.generation.decoder_pairs import recognise_pair
from dask_onnx.generation.decoder_starts import ToldStart, check_start
from dask_onnx.generation.genai_folders import ChosenEngine, choose_engine
from dask_onnx.generation.generation_options import check_context, end_tokens, folder_settings
from dask_onnx.generation.generation_requests import GivenEncoder
from dask_onnx.generation.tokenizer_checks import check_vocabulary, codec_of


@dataclass(frozen=True, slots=True)
class GeneratorSettings:
    """Settings of a generator, checked against its model."""

    form: DecoderForm
    """Roles of the model's inputs and outputs."""
    content: bytes | None = field(repr=False)
    """Content of the tokenizer's JSON file; None without one."""
    context: int | None
    """Tokens of a row at most; None for no limit."""
    eos: tuple[int, ...]
    """Numbers of the tokens that end a row, ascending."""
    encoder: GivenEncoder | None
    """Encoder whose states the model attends to; None without one."""
    engine: ChosenEngine
    """Engine that runs the model."""
    later: ModelFacts | None = None
    """Model of later tokens, where the given one is of the first tokens alone."""


def settle_generator(
    facts: ModelFacts,
    encoder: ModelFacts | None,
    tokenizer: Any,
    *,
    cache: Mapping[str, str] | None,
    context: int | None,
    start: Any,
    eos: Any,
    engine: Any,
    is_cut: bool = False,
    later: ModelFacts | None = None,
) -> GeneratorSettings:
    """Return the settings of a generator. Runs nothing.

    Parameters
    ----------
    facts, encoder : ModelFacts
        The decoder, and its encoder if it has one.
    later : ModelFacts, optional
        The decoder of later tokens, where `facts` are of the first tokens alone.
    tokenizer, cache, context, start, eos, engine
        As for `Generator`.
    is_cut : bool
        True if the decoder is cut into stages.

    Raises
    ------
    ModelError, InputError
        As for `Generator`.
    """
    onnx_model = facts.onnx
    form = _form_of(facts, later, cache, has_encoder=encoder is not None)
    content = None if tokenizer is None else _content_of(tokenizer)
    codec = codec_of(content)
    if codec is not None:
        check_vocabulary(codec.size, form.vocabulary)
    source = onnx_model.source
    told = folder_settings(None if source is None else source.path)
    given = None
    if encoder is not None:
        given = _given_encoder(encoder, start, told.start, content, form.vocabulary)
        if context is not None:
            raise InputError(
                "context was given, and the rows of a decoder with an encoder have no prompt",
                "limit them by max_new_tokens",
                option="context",
            )
    elif start is not None:
        raise InputError("start was given without an encoder", "leave it out", option="start")
    else:
        tables = (context_of_graph(onnx_model.parse(), form), form.buffer)
        shortest = min((each for each in tables if each is not None), default=None)
        context = _context(context, shortest, told.context)
    ends = tuple(sorted(set(told.eos))) if eos is None else token_numbers(eos, content)
    parts = {"an encoder": encoder is not None, "a second model": later is not None}
    other = next((part for part, is_there in parts.items() if is_there), None)
    if is_cut and other is not None:
        raise InputError(
            f"n_stages or plan was given with {other}",
            "leave it out: decoders with an encoder, or in two models, run whole",
            option="n_stages",
        )
    chosen = choose_engine(engine, facts, "stages" if is_cut else other)
    return GeneratorSettings(form, content, context, ends, given, chosen, later)


def _form_of(
    facts: ModelFacts,
    later: ModelFacts | None,
    cache: Mapping[str, str] | None,
    *,
    has_encoder: bool,
) -> DecoderForm:
    """Return the roles of a decoder's inputs and outputs, in one model or two."""
    values = (facts.onnx.inputs, facts.onnx.outputs)
    if later is None:
        return recognise_decoder(*values, cache, has_encoder=has_encoder)
    return recognise_pair(
        values, (later.onnx.inputs, later.onnx.outputs), cache, has_encoder=has_encoder
    )


def token_numbers(tokens: Any, content: bytes | None, option: str = "eos") -> tuple[int, ...]:
    """Return tokens of a caller as numbers; see `end_tokens`.

    Parameters
    ----------
    tokens : int, str or sequence of these
    content : bytes or None
        Content of the tokenizer's JSON file.
    option : str
        Name of the option in errors.
    """
    codec = codec_of(content)
    return end_tokens(tokens, None if codec is None else codec.tokens, option)


def _context(given: int | None, table: int | None, told: int | None) -> int | None:
    """Return the context: the caller's, or the smaller one of those of the graph and of files."""
    if given is not None:
        check_context(given, table)
        return given
    return min((each for each in (table, told) if each is not None), default=None)


def _given_encoder(
    facts: ModelFacts, start: Any, told: ToldStart, content: bytes | None, vocabulary: int | None
) -> GivenEncoder:
    """Return the encoder with the tokens that the decoder begins with.

    Raises
    ------
    InputError
        Nothing tells those tokens, or one is none of the model.
    """
    form = recognise_source(facts.onnx.inputs, facts.onnx.outputs)
    begins = told.tokens
    if start is not None:
        listed = list(start) if isinstance(start, list | tuple) else [start]
        begins = tuple(token for each in listed for token in token_numbers(each, content, "start"))
    check_start(start, begins, told, vocabulary)
    return GivenEncoder(facts, form, begins)


def _content_of(tokenizer: Any) -> bytes:
    try:
        from dask_onnx.generation.text_codec import tokenizer_content
    except ImportError as error:
        raise InputError(
            f"a tokenizer needs {error.name}, which is not installed",
            "pip install 'dask-onnx[text]', or pass prompts as sequences of tokens",
            option="tokenizer",
            reason=str(error),
        ) from error
    return tokenizer_content(tokenizer)
