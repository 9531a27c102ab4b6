"""Encoding of the texts of one partition: tokens, padding by length, the model, pooling."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tokenizers

from dask_onnx.collections.bad_rows import (
    Found,
    RowsError,
    crashes_at,
    in_place,
    located,
    run_rows,
)
from dask_onnx.collections.inline import InlineGraph
from dask_onnx.collections.run_options import RowOptions
from dask_onnx.collections.text.tokenizer_files import load_tokenizer
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.utf8 import NO_TEXT, text_fault

Pooling = Literal["mean", "max", "first"]
"""Reduction of several vectors to one."""

BUCKETS = (
    *range(8, 64, 4),
    *range(64, 128, 8),
    *range(128, 256, 16),
    *range(256, 512, 32),
    *(512, 768, 1024, 2048, 4096),
)
"""Default lengths to pad to, in tokens: fine enough that padding is a few per cent of the work,
coarse enough that rows of a partition share a length."""


_VECTORS = "vectors"
"""Name under which texts go in and vectors come out of `run_rows`."""
_SPECIAL_TOKENS = 2
"""Special tokens of a row, such as BERT's CLS and SEP."""
_FEWEST_TOKENS = _SPECIAL_TOKENS + 1
"""Smallest length of a row."""


@dataclass(frozen=True, slots=True)
class TextOptions:
    """Options of the conversion of text to tokens, and of tokens to vectors; see `TextModel`."""

    pooling: Pooling | None = "mean"
    """Reduction of the vectors of a row's tokens; None if the model returns one vector a row."""
    normalize: bool = False
    """True if vectors are divided by their 2-norm."""
    max_length: int = 512
    """Largest number of tokens of a text without windows, special tokens included."""
    window: int | None = None
    """Tokens of a window, special tokens included; None to truncate long texts."""
    stride: int = 0
    """Tokens that two successive windows share."""
    merge: Pooling | None = "mean"
    """Reduction of the vectors of a text's windows; None keeps all."""
    length_buckets: tuple[int, ...] = BUCKETS
    """Lengths in tokens, ascending; rows between the same two of them run together."""

    def __post_init__(self) -> None:
        for name, value in (("pooling", self.pooling), ("merge", self.merge)):
            if value not in ("mean", "max", "first", None):
                raise InputError(
                    f"{name} is {value!r}",
                    "choose 'mean', 'max', 'first' or None",
                    option=name,
                    suggestions=[Suggestion(name, "mean")],
                )
        option = "max_length" if self.window is None else "window"
        length = self.row_tokens
        if length < _FEWEST_TOKENS:
            raise InputError(
                f"{option} is {length} tokens, special tokens included",
                f"give {_FEWEST_TOKENS} or more",
                option=option,
                numbers={"tokens": length},
                suggestions=[Suggestion(option, _FEWEST_TOKENS)],
            )
        if not 0 <= self.stride < length - _SPECIAL_TOKENS:
            raise InputError(
                f"stride is {self.stride} of windows of {length} tokens",
                "two windows must share fewer tokens than a window has besides its special tokens",
                option="stride",
                numbers={"stride": self.stride, "tokens": length},
                suggestions=[Suggestion("stride", 0)],
            )
        buckets = tuple(sorted(b for b in self.length_buckets if b < length))
        object.__setattr__(self, "length_buckets", (*buckets, length))

    @property
    def row_tokens(self) -> int:
        """Largest number of tokens of a row, special tokens included."""
        return self.max_length if self.window is None else self.window


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """Function that encodes the texts of one partition."""

    graph: InlineGraph
    """Stages to run."""
    output: str
    """Name of the output that holds the vectors."""
    feeds: Mapping[str, tuple[str, np.dtype[Any]]]
    """Input to the tokenizer's output that feeds it ("ids", "mask", "types"), and its dtype."""
    options: TextOptions
    """Options of tokens and vectors."""
    rows: RowOptions
    """Treatment of bad texts."""
    tokenizer: str
    """Digest of the tokenizer's content."""
    token: str
    """Digest of the stages."""

    def __call__(self, content: bytes, texts: Sequence[Any], *supplies: Any) -> Found:
        """Return the vectors of the good texts, and the errors of the others.

        Parameters
        ----------
        content : bytes
            Content of the tokenizer's JSON file.
        texts : sequence
            Texts of the partition.
        supplies
            Results of the tasks that bring the model here.
        """
        stops = self.rows.on_error == "raise"

        def convert(positions: np.ndarray | None) -> dict[str, Any]:
            chosen = texts if positions is None else [texts[place] for place in positions]
            return {_VECTORS: decoded(chosen)}

        def run(texts: Mapping[str, Any]) -> dict[str, Any]:
            return {_VECTORS: self.vectors(content, texts[_VECTORS], supplies)}

        return run_rows(len(texts), convert, run, stops=stops)

    def vectors(self, content: bytes, texts: Sequence[str], supplies: Sequence[Any]) -> Any:
        """Return the vectors of texts.

        Returns
        -------
        ndarray, shape (texts, d), or list of ndarray
            For windows that are not merged, an array of shape (windows, d) for each text.
        """
        stride = 0 if self.options.window is None else self.options.stride
        tokenizer = _tokenizer(content, self.options.row_tokens, stride)
        rows, owners = _tokenize(tokenizer, texts, self.options)
        lengths = np.array([len(row.ids) for row in rows])
        vectors: list[Any] = [None] * len(rows)
        for bucket, places in _buckets(lengths, self.options.length_buckets):
            tokens = {
                "ids": _pad([rows[p].ids for p in places], bucket),
                "mask": _pad([rows[p].attention_mask for p in places], bucket),
                "types": _pad([rows[p].type_ids for p in places], bucket),
            }
            arrays = {
                name: tokens[kind].astype(dtype) for name, (kind, dtype) in self.feeds.items()
            }
            with crashes_at([owners[place] for place in places]):
                values = self.graph.run(arrays, supplies)[self.output]
            for place, vector in zip(
                places, _pool(values, tokens["mask"], self.options), strict=True
            ):
                vectors[place] = vector
        merged = _merge(np.stack(vectors), np.asarray(owners), len(texts), self.options)
        if self.options.normalize:
            merged = merged / np.maximum(np.linalg.norm(merged, axis=1, keepdims=True), 1e-12)
        if self.options.merge is not None:
            return merged
        return np.split(merged, np.searchsorted(owners, np.arange(1, len(texts))))

    def filled(self, found: Found, count: int, width: int | None) -> Any:
        """Return vectors for all texts: NaN, or None for a list, in place of bad ones.

        Parameters
        ----------
        found : Found
            Results.
        count : int
            Number of texts.
        width : int or None
            Elements of a vector, if the model fixes them.

        Raises
        ------
        InputError, StageError
            The first bad text's, if bad rows are errors.
        """
        self.raise_first(found, count, lambda position: f"text {position:,} of {count:,}: ")
        if found.values is None and not found.errors:
            return np.empty((0, width or 0), np.float32)
        if not found.errors:
            return vectors_of(found)
        values: Any = [] if found.values is None else vectors_of(found)
        if self.options.merge is None:
            return in_place(found, values, None)
        size = (width or 0) if found.values is None else len(values[0])
        return np.stack(in_place(found, values, np.full(size, np.nan, np.float32)))

    def raise_first(self, found: Found, count: int, where: Callable[[int], str]) -> None:
        """Raise the first error if bad rows are errors.

        Parameters
        ----------
        found : Found
            Results.
        count : int
            Number of texts.
        where : callable
            Takes a position, and returns the location that precedes the message.
        """
        if self.rows.on_error == "raise" and found.errors:
            position = min(found.errors)  # tasks of other texts may have found more
            raise located(found.errors[position], where(position), position, count) from None

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (self.token, self.tokenizer, repr(self.options), repr(self.rows), repr(self.feeds))


def vectors_of(found: Found) -> Any:
    """Return the vectors of the good texts; there must be some."""
    assert found.values is not None
    return found.values[_VECTORS]


@functools.lru_cache(maxsize=8)
def _tokenizer(content: bytes, length: int, stride: int) -> tokenizers.Tokenizer:
    made = load_tokenizer(content)
    made.enable_truncation(length, stride=stride)
    return made


def decoded(texts: Sequence[Any]) -> list[str]:
    """Return texts as str; bytes are decoded as UTF-8.

    Raises
    ------
    RowsError
        Some texts are missing, of another type, or not UTF-8.
    """
    faults = {
        place: fault for place, text in enumerate(texts) if (fault := _fault(text)) is not None
    }
    if faults:
        first = min(faults)
        raise RowsError(
            f"{len(faults):,} of {len(texts):,} texts are missing, no text or no UTF-8, the "
            f"first at position {first}: {faults[first]}",
            "fill them, decode them or drop the rows",
            np.isin(np.arange(len(texts)), list(faults)),
            row_causes=faults,
        )
    return [text.decode() if isinstance(text, bytes) else text for text in texts]


@dataclass(frozen=True, slots=True)
class UnfitText:
    """Placeholder of a text that cannot be used because of another column of its row."""

    reason: str
    """Message about the other column."""


def _fault(text: Any) -> str | None:
    if isinstance(text, UnfitText):
        return text.reason
    if not isinstance(text, str | bytes):
        return f"the text is missing, or of another type: {_short(text)}"
    fault = text_fault(text)
    return None if fault is None else f"the text {NO_TEXT}: {fault}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tokenize(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], options: TextOptions
) -> tuple[list[tokenizers.Encoding], list[int]]:
    """Return rows of tokens, and the position of each row's text."""
    is_windowed = options.window is not None
    rows: list[tokenizers.Encoding] = []
    owners: list[int] = []
    for place, encoding in enumerate(tokenizer.encode_batch(list(texts))):
        parts = [encoding, *encoding.overflowing] if is_windowed else [encoding]
        rows += parts
        owners += [place] * len(parts)
    return rows, owners


def _buckets(lengths: np.ndarray, sizes: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Return each length to pad to, and the positions of the rows to pad to it; shortest first.

    The length is that of the longest row between two buckets, not that of the bucket.
    """
    chosen = np.searchsorted(np.asarray(sizes), lengths)
    found = []
    for number in np.unique(chosen):
        places = np.flatnonzero(chosen == number)
        longest = int(lengths[places].max())
        found.append((max(longest, 1), [int(p) for p in places]))
    return found


def _pad(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    padded = np.zeros((len(rows), length), np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _pool(values: np.ndarray, mask: np.ndarray, options: TextOptions) -> np.ndarray:
    """Return one vector for each row of tokens.

    Parameters
    ----------
    values : ndarray, shape (rows, tokens, d) or (rows, d)
        Output of the model.
    mask : ndarray of int, shape (rows, tokens)
        0 for padding.
    """
    if options.pooling is None or values.ndim == 2:
        if values.ndim != 2:
            raise InputError(
                f"the model returns an array of rank {values.ndim - 1} for each text",
                "choose a pooling: 'mean'",
                option="pooling",
                numbers={"rank": values.ndim, "expected_rank": 2},
                suggestions=[Suggestion("pooling", "mean")],
            )
        return values
    if options.pooling == "first":
        return values[:, 0]
    weight = mask[..., None].astype(values.dtype)
    if options.pooling == "max":
        return np.asarray(np.where(weight > 0, values, -np.inf).max(axis=1))
    mean: np.ndarray = (values * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1)
    return mean


def _merge(vectors: np.ndarray, owners: np.ndarray, count: int, options: TextOptions) -> np.ndarray:
    """Return one vector for each text, from the vectors of its windows.

    Parameters
    ----------
    vectors : ndarray, shape (windows, d)
        Vectors of all windows; those of a text are adjacent.
    owners : ndarray of int, shape (windows,)
        Position of each window's text.
    count : int
        Number of texts.
    """
    if len(vectors) == count or options.merge is None:
        return vectors
    starts = np.searchsorted(owners, np.arange(count))
    if options.merge == "first":
        first: np.ndarray = vectors[starts]
        return first
    if options.merge == "max":
        return np.asarray(np.maximum.reduceat(vectors, starts))
    sums = np.add.reduceat(vectors, starts)
    merged: np.ndarray = sums / np.bincount(owners, minlength=count)[:, None].astype(sums.dtype)
    return merged
