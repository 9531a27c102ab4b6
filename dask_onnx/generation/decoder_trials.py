"""Opening of decoders in a process, with a trial of what changes none of their logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from dask_onnx.core.errors import ModelError, RunError, Suggestion
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.generation.array_encoders import ArrayEncoder, ArrayEncoderForm
from dask_onnx.generation.decoder_form import DecoderForm
from dask_onnx.generation.decoder_pairs import PairedSourceDecoder, paired
from dask_onnx.generation.decoder_runs import Decoder, Padding
from dask_onnx.generation.encoder_runs import Encoder, EncoderForm, SourceDecoder
from dask_onnx.generation.open_models import open_model
from dask_onnx.runtime.stage_calls import StageCall

AnyDecoder = TypeVar("AnyDecoder", bound=Decoder)
_ROWS = ((1, 2), (3, 4, 5, 6, 1, 2), (5, 6), (3, 4, 5, 1))
"""Tokens of the rows of a trial. The first and the third have equal lengths; the second and the
last share a prefix."""
_NEXT = (3, 2, 4, 6)
"""Token that follows each of them."""
_EQUAL, _SHARING, _PREFIX = (0, 2), (1, 3), 3
"""Rows of equal length, rows that share a prefix, and its tokens."""
_TOLERANCES = {2: 1e-2, 4: 1e-4, 8: 1e-4}
"""Bytes of a floating-point number to the largest difference of logits, as a share of the largest,
that rounding may make."""
_CACHE_TOLERANCE = 0.25
"""Largest difference of the logits with and without the cache, as a share of their range. Models
with quantised activations differ by some per cent; a cache that is paired wrongly by far more."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Facts of a decoder that a few runs have found."""

    padding: Padding
    """Padding with which rows in a batch have the logits that they have alone."""
    vocabulary: int
    """Number of tokens that its logits have."""
    takes_chunks: bool
    """True if a prompt in two parts has the logits that it has whole."""
    takes_prefix: bool
    """True if prompts that go on from a shared prefix have the logits that they have alone."""


_trials: BoundedCache[tuple[str, str], Trial] = BoundedCache("trials of decoders", 64)
"""Token of a decoder's stage, and its form, to what a trial has found."""


def open_decoder(
    form: DecoderForm,
    call: StageCall,
    supplies: Sequence[Any],
    *,
    is_coupled: bool = False,
    first: StageCall | None = None,
) -> Decoder:
    """Return a decoder in this process, with the padding that suits it.

    The first time in a process, a trial runs a few tokens alone, in batches and in parts.

    Parameters
    ----------
    form : DecoderForm
    call : StageCall
        Call of the stage that holds the whole model.
    supplies : sequence
        Results of the tasks that bring the model here.
    is_coupled : bool
        True if the rows of a batch are known to change each other.
    first : StageCall, optional
        Call of the model of the first run of a row, where that is another one; the last of the
        supplies are its own.

    Raises
    ------
    ModelError
        ONNX Runtime does not run the whole model, or steps with the cache have other logits than
        runs without it.
    StageError, StoreError
        The session cannot be built here.
    RunError
        The model does not run as a decoder of its form.
    """
    model = open_model(call, supplies[: call.supplies])
    decoder = Decoder(form, model.stage, model.session)
    token = call.stage.token
    if first is not None:
        decoder = _with_first(decoder, first, supplies)
        token = f"{token}-{first.stage.token}"
    return settled(decoder, token, is_coupled=is_coupled)


def settled(decoder: AnyDecoder, token: str, *, is_coupled: bool) -> AnyDecoder:
    """Return a decoder with the padding that suits it; see `open_decoder`.

    Parameters
    ----------
    decoder : Decoder
    token : str
        Digest of what it runs.
    is_coupled : bool
        True if the rows of a batch are known to change each other.
    """
    key = (token, repr(decoder.form))
    found = _trials.get_or_make(key, lambda: try_decoder(decoder))
    return replace(
        decoder,
        padding="alone" if is_coupled else found.padding,
        vocabulary=found.vocabulary,
        takes_chunks=found.takes_chunks and not is_coupled,
        takes_prefix=found.takes_prefix and not is_coupled,
    )


@dataclass(frozen=True, slots=True)
class EncoderCall:
    """Call of an encoder, and the tokens that its decoder begins with."""

    form: EncoderForm
    """Roles of its inputs and outputs."""
    call: StageCall
    """Call of the stage that holds the whole encoder."""
    start: tuple[int, ...]
    """Tokens that each row of the decoder begins with."""


def open_source_decoder(
    form: DecoderForm,
    call: StageCall,
    supplies: Sequence[Any],
    encoder: EncoderCall,
    *,
    is_coupled: bool = False,
    first: StageCall | None = None,
) -> Decoder:
    """Return a decoder with its encoder in this process; see `open_decoder`.

    Parameters
    ----------
    form, call, is_coupled, first
        As for `open_decoder`.
    supplies : sequence
        Results of the tasks that bring both models here, those of the decoder first.
    encoder : EncoderCall
        The encoder's stage.
    """
    decoder = source_decoder(form, call, supplies, encoder, first)
    return tried_source(decoder, call, encoder, None, is_coupled=is_coupled)


def source_decoder(
    form: DecoderForm,
    call: StageCall,
    supplies: Sequence[Any],
    encoder: EncoderCall,
    first: StageCall | None = None,
) -> SourceDecoder:
    """Return a decoder with its encoder in this process, without a trial; see `open_decoder`."""
    kind = ArrayEncoder if isinstance(encoder.form, ArrayEncoderForm) else Encoder
    others = supplies[call.supplies :]
    source = open_model(encoder.call, others[: encoder.call.supplies])
    model = open_model(call, supplies[: call.supplies])
    decoder = SourceDecoder(
        form,
        model.stage,
        model.session,
        encoder=kind(encoder.form, source.stage, source.session),
        start=encoder.start,
    )
    if first is None:
        return decoder
    found = _with_first(decoder, first, supplies)
    assert isinstance(found, SourceDecoder)
    return found


def _with_first(decoder: Decoder, first: StageCall, supplies: Sequence[Any]) -> Decoder:
    """Return a decoder of later tokens with the model of first ones, whose supplies are last."""
    own = supplies[len(supplies) - first.supplies :]
    return paired(decoder, open_model(first, own))


def tried_source(
    decoder: SourceDecoder,
    call: StageCall,
    encoder: EncoderCall,
    rows: Sequence[Sequence[int]] | None,
    *,
    is_coupled: bool,
) -> SourceDecoder:
    """Return a decoder with an encoder with what a trial has found.

    Parameters
    ----------
    decoder : SourceDecoder
    call, encoder
        Calls of its stages.
    rows : sequence of prompts, optional
        Two of them, to try; some tokens by default.
    is_coupled : bool
        True if the rows of a batch are known to change each other.

    Raises
    ------
    ModelError, RunError
        As for `try_decoder`.
    """
    first = decoder.first.stage.token if isinstance(decoder, PairedSourceDecoder) else None
    key = (
        call.stage.token,
        repr((decoder.form, encoder.form, encoder.call.stage.token, encoder.start, first)),
    )
    found = _trials.get_or_make(key, lambda: try_source_decoder(decoder, rows))
    return replace(
        decoder,
        padding="alone" if is_coupled else found.padding,
        vocabulary=found.vocabulary,
    )


def try_source_decoder(
    decoder: SourceDecoder, given: Sequence[Sequence[int]] | None = None
) -> Trial:
    """Run a few prompts alone and together, and return whether that changes logits.

    Raises
    ------
    ModelError, RunError
        As for `try_decoder`.
    """
    size = decoder.form.vocabulary or max(map(max, _ROWS)) + 1
    rows = given or [[token % size for token in row] for row in _ROWS]
    new = [token % size for token in _NEXT[: len(rows)]]
    alone = [_two_runs(decoder, [row], [token]) for row, token in zip(rows, new, strict=True)]
    expected = np.concatenate(alone, axis=1)
    whole, _ = decoder.begin([[*decoder.start, new[1]]], *decoder.encoder.run([rows[1]]))
    _check_cache(decoder, whole[0].astype(np.float64), expected[1, 1])
    are_equal = _gives(decoder.form, lambda: _two_runs(decoder, rows, new), expected)
    return Trial("together" if are_equal else "alone", int(expected.shape[-1]), False, False)


def try_decoder(decoder: Decoder) -> Trial:
    """Run a few tokens alone, in batches and in parts, and return what changes no logits.

    Raises
    ------
    ModelError
        Steps with the cache have other logits than runs without it.
    RunError
        The decoder does not run on single rows.
    """
    form = decoder.form
    size = form.vocabulary or max(map(max, _ROWS)) + 1
    rows = [[token % size for token in row] for row in _ROWS]
    new = [token % size for token in _NEXT]
    alone = [_two_runs(decoder, [row], [token]) for row, token in zip(rows, new, strict=True)]
    expected = np.concatenate(alone, axis=1)
    whole, _ = decoder.prefill([[*rows[1], new[1]]])
    _check_cache(decoder, whole[0].astype(np.float64), expected[1, 1])

    def gives(chosen: Sequence[int], padding: Padding) -> bool:
        padded = replace(decoder, padding=padding)
        prompts, tokens = [rows[i] for i in chosen], [new[i] for i in chosen]
        return _gives(form, lambda: _two_runs(padded, prompts, tokens), expected[:, list(chosen)])

    everything = range(len(rows))
    is_masked = form.mask is not None or form.lengths is not None
    sides: tuple[Padding, ...] = ("left", "right") if is_masked else ()
    padding: Padding | None = next((side for side in sides if gives(everything, side)), None)
    if padding is None:
        padding = "equal" if gives(_EQUAL, decoder.padding) else "alone"
    padded = replace(decoder, padding=padding)

    def in_parts() -> np.ndarray:
        return padded.prefill_chunks(rows[1], 4)[0]

    def after_prefix() -> np.ndarray:
        _, prefix = padded.prefill([rows[1][:_PREFIX]])
        return padded.prefill_after(prefix, [rows[i] for i in _SHARING])[0]

    has_cache = bool(form.cache)
    return Trial(
        padding,
        int(expected.shape[-1]),
        has_cache and _gives(form, in_parts, expected[0, 1:2]),
        has_cache and padding == "left" and _gives(form, after_prefix, expected[0, list(_SHARING)]),
    )


def _check_cache(decoder: Decoder, whole: np.ndarray, stepped: np.ndarray) -> None:
    """Refuse a cache with which a step has other logits than a run of all tokens."""
    share = float(np.abs(whole - stepped).max()) / max(float(np.ptp(whole)), 1e-6)
    if share <= _CACHE_TOLERANCE:
        return
    pairs = ", ".join(f"{each.present} to {each.past}" for each in decoder.form.cache[:2])
    raise ModelError(
        f"a step with the cache has other logits than a run of all tokens: they differ by "
        f"{share:.0%} of their range, with {pairs} and so on",
        "check the pairs of the cache: cache={'name of the output': 'name of the input'}",
        option="cache",
        numbers={"difference": share},
        suggestions=[Suggestion("cache")],
    )


def _two_runs(decoder: Decoder, rows: Sequence[Sequence[int]], new: Sequence[int]) -> np.ndarray:
    """Return the logits of prompts and of one step, shape (2, rows, vocabulary)."""
    first, batch = decoder.prefill(rows)
    return np.stack([first, decoder.step(batch, new)]).astype(np.float64)


def _gives(form: DecoderForm, run: Callable[[], np.ndarray], expected: np.ndarray) -> bool:
    """Return whether runs have the expected logits, up to rounding in the model's types."""
    try:
        found = run().astype(np.float64)
    except RunError:  # a model that takes one row, no padding or one new token says so in this way
        return False
    sizes = [tensor.dtype.itemsize for tensor in form.cache]
    if form.logits.dtype is not None:
        sizes.append(form.logits.dtype.itemsize)
    tolerance = _TOLERANCES[min(sizes, default=4)] * max(float(np.abs(expected).max()), 1e-6)
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= tolerance)
