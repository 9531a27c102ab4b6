"""Text in, vectors out: tokens, padding by length, pooling, around a text encoder."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from dask.base import compute
from dask.delayed import Delayed, delayed

from dask_onnx.collections.here import HereGraph, here_graph, supply_collections
from dask_onnx.collections.kinds import is_bag, is_table
from dask_onnx.collections.request import BatchSize
from dask_onnx.errors import InputError, ModelError
from dask_onnx.lower import digest
from dask_onnx.model import Model
from dask_onnx.specs import TensorSpec

Pooling = Literal["mean", "max", "first"]

_KINDS = {
    "ids": ("input_ids", "ids", "tokens", "input"),
    "mask": ("attention_mask", "mask", "input_mask"),
    "types": ("token_type_ids", "segment_ids", "type_ids"),
}
"""What the inputs of text encoders are called."""
_TEXTS_OF_A_TASK = 256
_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How text becomes tokens, and tokens vectors."""

    pooling: Pooling | None = "mean"
    normalize: bool = False
    max_length: int = 512
    window: int | None = None
    stride: int = 0
    merge: Pooling = "mean"
    length_buckets: tuple[int, ...] = _BUCKETS

    def __post_init__(self) -> None:
        for name, value in (("pooling", self.pooling), ("merge", self.merge)):
            if value not in ("mean", "max", "first", None) or (name == "merge" and value is None):
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


class TextModel:
    """A text encoder with its tokenizer: sentences in, a vector for each out.

    Parameters
    ----------
    model : Model, or what `dask_onnx.load` takes
        Its inputs are token ids, and optionally a mask and token types, (N, T) integers; its first
        output, or `output`, is (N, T, d), or (N, d) if the model pools itself.
    tokenizer : path of a ``tokenizer.json``, its content as bytes, or tokenizers.Tokenizer
        Its own padding and truncation are ignored.
    pooling : {"mean", "max", "first"} or None
        How the vectors of a text's tokens become one, padding left out; None for a model that
        gives one itself. "first" is the vector of the first token, which BERT calls CLS.
    normalize : bool
        Divide each vector by its length (2-norm).
    max_length : int
        Tokens of a text, special ones included; what is beyond is cut off at the end.
    window, stride : int, optional
        Rather than cut long texts off, give each window of so many tokens a row of its own, with
        `stride` tokens shared by two windows, as the tokenizers package means it.
    merge : {"mean", "max", "first"}
        How the vectors of a text's windows become one.
    length_buckets : sequence of int
        Rows whose lengths are between the same two of these run together, padded to the longest
        of them.
    output : str, optional
    feeds : mapping of input to "ids", "mask" or "types", optional
        Where the inputs do not have the usual names.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        *,
        pooling: Pooling | None = "mean",
        normalize: bool = False,
        max_length: int = 512,
        window: int | None = None,
        stride: int = 0,
        merge: Pooling = "mean",
        length_buckets: Sequence[int] = _BUCKETS,
        output: str | None = None,
        feeds: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.output = output or model.outputs[0].name
        self._content = _tokenizer_content(tokenizer)
        self._options = TextOptions(
            pooling, normalize, max_length, window, stride, merge, tuple(length_buckets)
        )
        self._feeds = _text_feeds(model._facts.inputs_of((self.output,)), feeds or {})

    def predict(self, x: Any, *, batch_size: BatchSize = "auto") -> Any:
        """A vector for each text.

        Parameters
        ----------
        x : str, sequence of str, Series of pandas or dask, or dask.bag of str
        batch_size : as for `Model.predict`: rows of a run, of those of like length

        Returns
        -------
        For a str an array (d,), for a sequence (texts, d), both float; for a Series a Series of
        fixed-size lists with its index and name; for a bag a bag of arrays. Lazy for dask.

        Raises
        ------
        InputError
            Missing texts, with their count; from a worker, when the result is computed.
        """
        encode, supplies, content = self._encoder(batch_size)
        if isinstance(x, str):
            return self._run(encode, supplies, content, [x])[0]
        if is_bag(x):
            return x.map_partitions(_BagTexts(encode), content, *supplies)
        if is_table(x):
            return self._predict_series(x, encode, supplies, content)
        return self._run(encode, supplies, content, list(x))

    def _predict_series(
        self, x: Any, encode: _Encoder, supplies: Sequence[Delayed], content: Delayed
    ) -> Any:
        import pandas as pd  # a caller with a Series has it
        import pyarrow as pa

        if x.ndim != 1:
            raise InputError("a table was given", "choose its column of text: ddf['text']")
        width = self._width()
        kind = pa.list_(pa.float32(), width) if width else pa.list_(pa.float32())
        wrap = _SeriesTexts(encode, pd.ArrowDtype(kind))
        if isinstance(x, pd.Series):
            return wrap.of(x, self._run(encode, supplies, content, list(x)))
        meta = wrap.of(x._meta, np.empty((0, width or 0), np.float32))
        return x.map_partitions(wrap, content, *supplies, meta=meta)

    def _width(self) -> int | None:
        spec = self.model._facts.declared.get(self.output)
        last = spec.shape[-1] if spec is not None and spec.shape else None
        return last if isinstance(last, int) else None

    def _encoder(self, batch_size: BatchSize) -> tuple[_Encoder, list[Delayed], Delayed]:
        request = self.model._row_request([self.output], batch_size, None, None)
        graph = here_graph(request, list(self._feeds), [self.output])
        name = hashlib.sha256(self._content).hexdigest()
        encode = _Encoder(
            graph,
            self.output,
            self._feeds,
            self._options,
            name,
            digest(sorted(map(str, graph.tasks))),
        )
        content = delayed(self._content, name=f"tokenizer-{name}", traverse=False)
        return encode, supply_collections(request), content

    def _run(
        self, encode: _Encoder, supplies: Sequence[Delayed], content: Delayed, texts: list[Any]
    ) -> np.ndarray:
        """Now, on the scheduler that Dask would use: here, unless that is a cluster."""
        starts = range(0, max(len(texts), 1), _TEXTS_OF_A_TASK)
        parts = [texts[start : start + _TEXTS_OF_A_TASK] for start in starts]
        # The tasks inside the encoder are its own, not Dask's to look into.
        run = delayed(encode, pure=True, traverse=False)
        lazy = [run(content, part, *supplies) for part in parts]
        found = compute(*lazy)
        return found[0] if len(found) == 1 else np.concatenate(found)


@dataclass(frozen=True, slots=True, eq=False)
class _Encoder:
    """All that happens to the texts of one partition."""

    graph: HereGraph
    output: str
    feeds: Mapping[str, tuple[str, np.dtype[Any]]]
    """Input to what it takes ("ids", "mask", "types"), and its dtype."""
    options: TextOptions
    tokenizer: str
    """Digest of its content."""
    token: str

    def __call__(self, content: bytes, texts: Sequence[Any], *supplies: Any) -> np.ndarray:
        if not len(texts):
            return np.empty((0, 0), np.float32)
        _check_texts(texts)
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
        return merged

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (self.token, self.tokenizer, repr(self.options), repr(self.feeds))


@dataclass(frozen=True, slots=True, eq=False)
class _BagTexts:
    encode: _Encoder

    def __call__(self, texts: Iterable[Any], content: bytes, *supplies: Any) -> list[Any]:
        return list(self.encode(content, list(texts), *supplies))

    def __dask_tokenize__(self) -> Any:
        return self.encode.__dask_tokenize__()


@dataclass(frozen=True, slots=True, eq=False)
class _SeriesTexts:
    encode: _Encoder
    dtype: Any = field(repr=False)

    def __call__(self, texts: Any, content: bytes, *supplies: Any) -> Any:
        return self.of(texts, self.encode(content, list(texts), *supplies))

    def of(self, texts: Any, vectors: np.ndarray) -> Any:
        import pandas as pd
        import pyarrow as pa

        flat = pa.array(vectors.astype(np.float32).reshape(-1))
        kind = self.dtype.pyarrow_dtype
        if pa.types.is_fixed_size_list(kind):
            lists = pa.FixedSizeListArray.from_arrays(flat, type=kind)
        else:
            starts = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
            lists = pa.ListArray.from_arrays(pa.array(starts), flat)
        values = pd.arrays.ArrowExtensionArray(lists)
        return pd.Series(values, index=texts.index, name=texts.name)

    def __dask_tokenize__(self) -> Any:
        return (*self.encode.__dask_tokenize__(), str(self.dtype))


def _tokenizer_content(tokenizer: Any) -> bytes:
    if isinstance(tokenizer, tokenizers.Tokenizer):
        return str(tokenizer.to_str()).encode()
    if isinstance(tokenizer, bytes):
        return tokenizer
    path = Path(tokenizer)
    if not path.is_file():
        raise ModelError(
            f"the tokenizer {path} does not exist", "name the tokenizer.json of the model"
        )
    return path.read_bytes()


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


def _text_feeds(
    inputs: Sequence[TensorSpec], given: Mapping[str, str]
) -> dict[str, tuple[str, np.dtype[Any]]]:
    usual = {name: kind for kind, names in _KINDS.items() for name in names}
    feeds = {}
    for spec in inputs:
        kind = given.get(spec.name, usual.get(spec.name))
        if kind not in _KINDS or spec.dtype is None or spec.dtype.kind not in "iuf":
            raise InputError(
                f"it cannot be told what of a text goes into input {spec}",
                f"say it: feeds={{{spec.name!r}: 'ids' | 'mask' | 'types'}}",
            )
        feeds[spec.name] = (kind, spec.dtype)
    return feeds


def _check_texts(texts: Sequence[Any]) -> None:
    wrong = [place for place, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        raise InputError(
            f"{len(wrong):,} of {len(texts):,} texts are missing or no text, the first at position "
            f"{wrong[0]}: {texts[wrong[0]]!r}",
            "fill them or drop the rows",
        )


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
    if len(vectors) == count:
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
