"""Runs of a decoder on a batch of rows: prompts, single steps, and the cache between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dask_onnx.core.specs import TensorSpec
from dask_onnx.generation.decoder_form import CacheTensor, DecoderForm
from dask_onnx.generation.open_models import OpenModel
from dask_onnx.runtime.session import Session
from dask_onnx.runtime.stage_refs import StageRef

Padding = Literal["left", "right", "equal", "together", "alone"]
"""Side on which shorter rows of a batch are padded; "equal" if rows of one batch must have equal
lengths, "together" if they must begin at the same time, "alone" if the rows of a batch change each
other's logits."""


@dataclass(slots=True)
class Batch:
    """Rows of a batch after a run: the tokens that were fed, and the cache that holds them."""

    tokens: list[list[int]]
    """All tokens fed so far, for each row."""
    cache: list[Any]
    """Value of each tensor of the cache, ndarray or OrtValue: rows first, and as many positions as
    the longest row has tokens."""

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each row."""
        return [len(row) for row in self.tokens]

    @property
    def width(self) -> int:
        """Number of tokens of the longest row."""
        return max(self.lengths, default=0)


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder's session with the roles of its inputs and outputs."""

    form: DecoderForm
    """Roles of inputs and outputs."""
    stage: StageRef
    """Stage that holds the whole model."""
    session: Session
    """Session of the stage."""
    padding: Padding = "left"
    """Padding of its batches."""
    vocabulary: int | None = None
    """Number of tokens that its logits have; None before a trial."""
    takes_chunks: bool = False
    """True if a prompt may run in several parts, each with the cache of those before."""
    takes_prefix: bool = False
    """True if several prompts may go on from the cache of a prefix that they share."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, Batch]:
        """Run prompts from their first token on.

        Parameters
        ----------
        prompts : sequence of sequence of int
            Tokens of each row, at least one.

        Returns
        -------
        logits : ndarray, shape (rows, vocabulary)
            Those after each row's last token.
        batch : Batch
            The rows with their cache.
        """
        tokens = [list(prompt) for prompt in prompts]
        batch = Batch(tokens, [])
        lengths, width = np.array(batch.lengths), batch.width
        is_token = _mask(lengths, width, self._is_right)
        ids = np.zeros((len(tokens), width), np.int64)
        ids[is_token] = np.concatenate(tokens)
        places = np.maximum(is_token.cumsum(axis=1) - 1, 0)
        # A merged model ignores the cache in its branch for prompts, but wants a position in it.
        start = 0 if self.form.use_cache is None else 1
        cache = [tensor.empty(len(tokens), start) for tensor in self.form.cache]
        feeds = self._feeds(ids, is_token, places, cache, use_cache=False)
        logits, batch.cache = self._run(feeds)
        last = lengths - 1 if self._is_right and logits.shape[1] == width else -1
        return logits[np.arange(len(tokens)), last], batch

    def prefill_chunks(self, prompt: Sequence[int], size: int) -> tuple[np.ndarray, Batch]:
        """Run one prompt in parts of so many tokens; see `prefill`."""
        logits, batch = self.prefill([prompt[:size]])
        for start in range(size, len(prompt), size):
            logits = self.extend(batch, [prompt[start : start + size]])
        return logits, batch

    def prefill_after(
        self, prefix: Batch, prompts: Sequence[Sequence[int]]
    ) -> tuple[np.ndarray, Batch]:
        """Run prompts from the end of a prefix on that all of them share; see `prefill`.

        The rows get equally many tokens in one run: of a shorter prompt, the last ones of the
        prefix are among them, so that padding stays on the left.

        Parameters
        ----------
        prefix : Batch
            One row: the prefix and its cache.
        prompts : sequence of sequence of int
            Tokens of each row; each begins with the prefix, and is at least one token longer.
        """
        longest = max(map(len, prompts))
        count = longest - prefix.width
        kept = Batch([list(prompt[: len(prompt) - count]) for prompt in prompts], [])
        shared = [array_of(value) for value in prefix.cache]
        for tensor, values in zip(self.form.cache, shared, strict=True):
            parts = [
                self._placed(tensor, self._cut(tensor, values, len(row)), kept.width)
                for row in kept.tokens
            ]
            kept.cache.append(np.concatenate(parts))
        return self.extend(kept, [list(prompt[-count:]) for prompt in prompts]), kept

    def step(self, batch: Batch, new: Sequence[int]) -> np.ndarray:
        """Feed one more token to each row, and return the logits after it.

        Parameters
        ----------
        batch : Batch
            Rows, which get the tokens and the cache after them.
        new : sequence of int
            Next token of each row.

        Returns
        -------
        ndarray, shape (rows, vocabulary)
        """
        return self.extend(batch, [[token] for token in new])

    def extend(self, batch: Batch, new: Sequence[Sequence[int]]) -> np.ndarray:
        """Feed further tokens to each row, the same number to each; see `step`."""
        if not self.form.cache:
            longer = [[*row, *tokens] for row, tokens in zip(batch.tokens, new, strict=True)]
            logits, found = self.prefill(longer)
            batch.tokens = found.tokens
            return logits
        logits, batch.cache = self._run(self._next_feeds(batch, new, batch.cache))
        return logits[:, -1]

    def _next_feeds(
        self, batch: Batch, new: Sequence[Sequence[int]], cache: Sequence[Any]
    ) -> dict[str, Any]:
        """Append tokens to each row, and return what a run of them is fed."""
        ids = np.array(new, np.int64)
        places = np.array(batch.lengths)[:, None] + np.arange(ids.shape[1])
        for row, tokens in zip(batch.tokens, new, strict=True):
            row.extend(tokens)
        is_token = _mask(np.array(batch.lengths), batch.width, self._is_right)
        return self._feeds(ids, is_token, places, cache, use_cache=True)

    def select(self, batch: Batch, rows: Sequence[int]) -> Batch:
        """Return a batch of some rows, in the order given; positions that all lack are dropped."""
        kept = Batch([list(batch.tokens[row]) for row in rows], [])
        kept.cache = [
            self._placed(tensor, array_of(value)[list(rows)], kept.width)
            for tensor, value in zip(self.form.cache, batch.cache, strict=True)
        ]
        return kept

    def join(self, one: Batch, other: Batch) -> Batch:
        """Return a batch of the rows of both, the shorter ones padded."""
        joined = Batch([*one.tokens, *other.tokens], [])
        joined.cache = [
            np.concatenate([self._placed(tensor, array_of(v), joined.width) for v in pair])
            for tensor, *pair in zip(self.form.cache, one.cache, other.cache, strict=True)
        ]
        return joined

    @property
    def model(self) -> OpenModel:
        """Stage with its session."""
        return OpenModel(self.stage, self.session)

    @property
    def _is_right(self) -> bool:
        return self.padding == "right"

    @staticmethod
    def _cut(tensor: CacheTensor, values: np.ndarray, count: int) -> np.ndarray:
        """Return the first positions of a cache of one row."""
        return values[(slice(None),) * tensor.axis + (slice(0, count),)]

    def _placed(self, tensor: CacheTensor, values: np.ndarray, width: int) -> np.ndarray:
        """Return a tensor of the cache with another number of positions, padded or cut."""
        axis, size = tensor.axis, values.shape[tensor.axis]
        if tensor.buffer is not None:
            return values
        if size > width:
            part = slice(0, width) if self._is_right else slice(size - width, None)
            return values[(slice(None),) * axis + (part,)]
        if size == width:
            return values
        missing = (0, width - size) if self._is_right else (width - size, 0)
        return np.pad(values, [missing if each == axis else (0, 0) for each in range(values.ndim)])

    def _feeds(
        self,
        ids: np.ndarray,
        is_token: np.ndarray,
        places: np.ndarray,
        cache: Sequence[Any],
        *,
        use_cache: bool,
    ) -> dict[str, Any]:
        form = self.form
        feeds: dict[str, Any] = {form.ids.name: as_type(ids, form.ids)}
        if form.mask is not None:
            feeds[form.mask.name] = as_type(is_token, form.mask)
        if form.positions is not None:
            feeds[form.positions.name] = as_type(places, form.positions)
        if form.use_cache is not None:
            shape = (1,) if form.use_cache.rank else ()
            feeds[form.use_cache.name] = np.full(shape, use_cache)
        lengths = is_token.sum(axis=1)
        if form.lengths is not None:
            last = (lengths - 1)[:, None] if form.lengths.rank == 2 else lengths - 1
            feeds[form.lengths.name] = as_type(last, form.lengths)
        if form.total is not None:
            shape = (1,) if form.total.rank else ()
            feeds[form.total.name] = as_type(np.full(shape, lengths.max()), form.total)
        past = {tensor.past: value for tensor, value in zip(form.cache, cache, strict=True)}
        return feeds | past

    def _run(self, feeds: Mapping[str, Any]) -> tuple[np.ndarray, list[Any]]:
        """Return logits of shape (rows, tokens, vocabulary), and the tensors of the cache."""
        logits, *cache = self.model.run(feeds, self.form.outputs)
        return logits.numpy(), cache


def _mask(lengths: np.ndarray, width: int, is_right: bool) -> np.ndarray:
    """Return True for tokens and False for padding, shape (rows, width)."""
    columns = np.arange(width)
    if is_right:
        return np.asarray(columns < lengths[:, None])
    return np.asarray(columns >= width - lengths[:, None])


def array_of(value: Any) -> np.ndarray:
    """Return an array, or a copy of what is in ONNX Runtime's memory."""
    return value if isinstance(value, np.ndarray) else np.asarray(value.numpy())


def as_type(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Return numbers in the type of an input."""
    return array.astype(spec.dtype or np.int64, copy=False)
