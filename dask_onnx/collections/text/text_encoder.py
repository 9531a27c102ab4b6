"""Texts of one partition: tokens, padding by length, the model, pooling."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tokenizers

from dask_onnx.collections.bad_rows import ERROR, Found, RowsError, located, run_rows
from dask_onnx.collections.inline import InlineGraph
from dask_onnx.collections.run_options import RowOptions
from dask_onnx.collections.text.texts import NO_TEXT, Unfit, text_fault
from dask_onnx.core.errors import InputError, ModelError

Pooling = Literal["mean", "max", "first"]

BUCKETS = (
    *range(8, 64, 4),
    *range(64, 128, 8),
    *range(128, 256, 16),
    *range(256, 512, 32),
    *(512, 768, 1024, 2048, 4096),
)
"""Fine enough that padding is a few per cent, coarse enough that rows of a partition meet."""


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How text becomes tokens, and tokens vectors."""

    pooling: Pooling | None = "mean"
    normalize: bool = False
    max_length: int = 512
    window: int | None = None
    stride: int = 0
    merge: Pooling | None = "mean"
    length_buckets: tuple[int, ...] = BUCKETS

    def __post_init__(self) -> None:
        for name, value in (("pooling", self.pooling), ("merge", self.merge)):
            if value not in ("mean", "max", "first", None):
                raise InputError(f"{name} is {value!r}", "choose 'mean', 'max' or 'first'")
        length = self.max_length if self.window is None else self.window
        if length < 3:
            raise InputError(f"a text may have {length} tokens", "give 3 or more")
        if not 0 <= self.stride < length - 2:
            raise InputError(
                f"stride is {self.stride} of windows of {length} tokens",
                "the tokens that two windows share must be fewer than a window has, without its "
                "special ones",
            )
        buckets = tuple(sorted(b for b in self.length_buckets if b < length))
        object.__setattr__(self, "length_buckets", (*buckets, length))

    @property
    def row_tokens(self) -> int:
        """Tokens of a row at most, special ones included."""
        return self.max_length if self.window is None else self.window


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """All that happens to the texts of one partition."""

    graph: InlineGraph
    output: str
    feeds: Mapping[str, tuple[str, np.dtype[Any]]]
    """Input to what it takes ("ids", "mask", "types"), and its dtype."""
    options: TextOptions
    rows: RowOptions
    tokenizer: str
    """Digest of its content."""
    token: str

    def __call__(self, content: bytes, texts: Sequence[Any], *supplies: Any) -> Found:
        """The vectors of the good texts, and what is wrong with the others."""
        stops = self.rows.on_error == "raise"

        def convert(positions: np.ndarray | None) -> dict[str, Any]:
            chosen = texts if positions is None else [texts[place] for place in positions]
            return {_VECTORS: decoded(chosen)}

        def run(texts: Mapping[str, Any]) -> dict[str, Any]:
            return {_VECTORS: self.vectors(content, texts[_VECTORS], supplies)}

        return run_rows(len(texts), convert, run, stops=stops)

    def vectors(self, content: bytes, texts: Sequence[str], supplies: Sequence[Any]) -> Any:
        """(texts, d), or for unmerged windows a list of (windows, d)."""
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
        """Something for every text: the first error is raised, or bad ones become NaN."""
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
        if self.rows.on_error == "raise" and found.errors:
            ((position, error),) = found.errors.items()
            raise located(error, where(position)) from None

    def bad_items(self, texts: Sequence[Any], found: Found) -> list[dict[str, Any]]:
        return [
            {"row": texts[place], ERROR: message}
            for place, message in zip(found.bad, found.messages(), strict=True)
        ]

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (self.token, self.tokenizer, repr(self.options), repr(self.rows), repr(self.feeds))


_VECTORS = "vectors"


def vectors_of(found: Found) -> Any:
    assert found.values is not None
    return found.values[_VECTORS]


def in_place(found: Found, values: Any, nothing: Any) -> list[Any]:
    """Of the good texts their values, of the bad ones `nothing`, in the order of the texts."""
    rows = dict(zip(found.good, values, strict=True))
    return [rows.get(place, nothing) for place in range(len(found.good) + len(found.errors))]


@functools.lru_cache(maxsize=8)
def _tokenizer(content: bytes, length: int, stride: int) -> tokenizers.Tokenizer:
    # It would start a thread for each core beside Dask's own.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        made = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the package raises plain Exceptions
        raise ModelError(
            f"the tokenizer cannot be read: {str(error)[:200]}", "pass a tokenizer.json"
        ) from None
    made.no_padding()
    made.enable_truncation(length, stride=stride)
    return made


def decoded(texts: Sequence[Any]) -> list[str]:
    """Texts that a tokenizer takes; bytes are UTF-8.

    Raises
    ------
    RowsError
        Some are missing, no text, or undecodable.
    """
    faults = {
        place: fault for place, text in enumerate(texts) if (fault := _fault(text)) is not None
    }
    if faults:
        wrong = np.isin(np.arange(len(texts)), list(faults))
        first = min(faults)
        raise RowsError(
            f"{len(faults):,} of {len(texts):,} texts are missing, no text or no UTF-8, the "
            f"first at position {first}: {faults[first]}",
            "fill them, decode them or drop the rows",
            wrong,
            of_rows=faults,
        )
    return [text.decode() if isinstance(text, bytes) else text for text in texts]


def _fault(text: Any) -> str | None:
    if isinstance(text, Unfit):
        return text.reason
    if not isinstance(text, str | bytes):
        return f"the text is missing, or is none: {_short(text)}"
    fault = text_fault(text)
    return None if fault is None else f"the text {NO_TEXT}: {fault}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tokenize(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], options: TextOptions
) -> tuple[list[tokenizers.Encoding], list[int]]:
    """Rows of tokens, and for each the text that it is of."""
    is_windowed = options.window is not None
    rows: list[tokenizers.Encoding] = []
    owners: list[int] = []
    for place, encoding in enumerate(tokenizer.encode_batch(list(texts))):
        parts = [encoding, *encoding.overflowing] if is_windowed else [encoding]
        rows += parts
        owners += [place] * len(parts)
    return rows, owners


def _buckets(lengths: np.ndarray, sizes: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Lengths to pad to, and the positions of the rows that are; shortest first."""
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
    if options.pooling is None or values.ndim == 2:
        if values.ndim != 2:
            raise InputError(
                f"the model gives {values.ndim - 1} axes a text", "choose a pooling: 'mean'"
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
    """One vector a text from those of its windows, which stand one after the other."""
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
