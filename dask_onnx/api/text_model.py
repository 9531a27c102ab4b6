"""Text encoders with their tokenizers, on every kind of collection."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.delayed import Delayed, delayed

from dask_onnx.api.model import Model
from dask_onnx.cluster.current_scheduler import compute_now
from dask_onnx.collections.bad_rows import Found, bad_items, in_place, join_found
from dask_onnx.collections.inline import (
    InlineGraph,
    InlineTask,
    inline_graph,
    supply_collections,
)
from dask_onnx.collections.kept_predictions import KeptPrediction
from dask_onnx.collections.kinds import is_bag, is_table
from dask_onnx.collections.partitions import partition_request
from dask_onnx.collections.run_options import BatchSize, OnError, RowOptions, RunOptions
from dask_onnx.collections.text.text_encoder import (
    BUCKETS,
    Encoder,
    Pooling,
    TextOptions,
    vectors_of,
)
from dask_onnx.collections.text.tokenizer_files import tokenizer_content
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.core.stage_tasks import digest

_KINDS = {
    "ids": ("input_ids", "ids", "tokens", "input"),
    "mask": ("attention_mask", "mask", "input_mask"),
    "types": ("token_type_ids", "segment_ids", "type_ids"),
}
"""Outputs of a tokenizer to the usual names of the inputs that take them."""
_TEXTS_OF_A_TASK = 256
"""Texts of each task, where a sequence of texts is encoded."""


class TextModel:
    """A text encoder with its tokenizer, which turns each text into a vector.

    Parameters
    ----------
    model : Model
        Inputs are token ids, and optionally a mask and token types: numbers, shape (N, T). The
        output is of shape (N, T, d), or (N, d) if the model pools by itself.
    tokenizer : path of a ``tokenizer.json``, its content as bytes, or tokenizers.Tokenizer
        Its own padding and truncation are ignored.
    pooling : {"mean", "max", "first"} or None
        Reduction of the vectors of a text's tokens to one, without padding; None for a model that
        returns one vector. "first" takes the vector of the first token, which BERT calls CLS.
    normalize : bool
        Divide each vector by its length (2-norm).
    max_length : int
        Largest number of tokens of a text, special tokens included; longer texts are truncated.
    window : int, optional
        Tokens of a window, special tokens included. Long texts are then not truncated but split
        into windows, each of which is a row of the model.
    stride : int, default 0
        Tokens that two successive windows share, as in the tokenizers package.
    merge : {"mean", "max", "first"} or None
        Reduction of the vectors of a text's windows to one; None returns the vector of each window.
    length_buckets : sequence of int
        Lengths in tokens. Rows whose lengths are between the same two of these run together,
        padded to the longest of them.
    output : str, optional
        Name of the output; the model's first output by default.
    feeds : mapping of str to {"ids", "mask", "types"}, optional
        Output of the tokenizer that feeds each input, where inputs do not have the usual names.

    Raises
    ------
    InputError
        An option is out of range, or the tokenizer's output for an input is not known.
    ModelError
        The tokenizer does not exist.
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
        merge: Pooling | None = "mean",
        length_buckets: Sequence[int] = BUCKETS,
        output: str | None = None,
        feeds: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.output = output or model.outputs[0].name
        self._content = tokenizer_content(tokenizer)
        self._options = TextOptions(
            pooling, normalize, max_length, window, stride, merge, tuple(length_buckets)
        )
        self._feeds = _text_feeds(model._facts.inputs_of((self.output,)), feeds or {})

    def predict(
        self,
        x: Any,
        *,
        column: Any = None,
        name: str = "embedding",
        batch_size: BatchSize = "auto",
        on_error: OnError = "raise",
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> Any:
        """Return a vector for each text.

        Parameters
        ----------
        x : str, sequence of str, Series or DataFrame of pandas or Dask, or dask.bag of str
            Texts; bytes are decoded as UTF-8.
        column : hashable, optional; for a DataFrame
            Label of the column of text.
        name : str, default "embedding"; for a DataFrame
            Label of the column of vectors, which is added to the caller's columns.
        batch_size : int, "auto" or None
            Rows of a run, among rows of similar length; see `Model.predict`.
        on_error : {"raise", "null"}
            Treatment of missing and undecodable texts: an error; or a missing value in a Series,
            None in a bag, a row of NaN in an array.
        checkpoint : path or URL, optional
            Folder that keeps finished partitions of a Dask Series, DataFrame or bag, as for
            `Model.predict`.

        Returns
        -------
        ndarray, Series, DataFrame or Bag
            For a str an array of shape (d,), for a sequence one of shape (texts, d), both floating
            point. For a Series a Series of fixed-size lists with its index and name; for a
            DataFrame the table with a further column; for a bag a bag of arrays. Lazy for Dask.
            With ``merge=None`` a text has a row for each of its windows: an array of shape
            (windows, d) for a str and an item of a bag, a list of such arrays for a sequence, a
            row for each window for a Series or DataFrame.

        Raises
        ------
        InputError
            Missing and undecodable texts, with their count; from a worker, when the result is
            computed.
        """
        rows = RowOptions(on_error)
        if checkpoint is None:
            return self._predict(x, (column, name), batch_size, rows)
        kept = KeptPrediction(
            "texts",
            (self.model.__dask_tokenize__(), hashlib.sha256(self._content).hexdigest()),
            {
                "output": self.output,
                "options": repr((self._options, self._feeds)),
                "column": [column, name],
                "batch_size": batch_size,
                "on_error": on_error,
            },
        )
        return kept.keep(x, checkpoint, lambda: self._predict(x, (column, name), batch_size, rows))

    def predict_checked(
        self,
        x: Any,
        *,
        column: Any = None,
        name: str = "embedding",
        batch_size: BatchSize = "auto",
    ) -> tuple[Any, Any]:
        """Return the vectors of the good texts, and the bad texts in a collection of their own.

        Parameters
        ----------
        x, column, name, batch_size
            See `predict`.

        Returns
        -------
        good : ndarray, Series, DataFrame or Bag
            Vectors of the good texts.
        bad : DataFrame, list or Bag
            Bad texts: for a Series or DataFrame their rows with a column ``error``, otherwise dicts
            of ``row`` and ``error``.

        Raises
        ------
        InputError
            A column is missing, or its name is taken.
        """
        if isinstance(x, str):
            x = [x]
        good, bad = self._predict(x, (column, name), batch_size, RowOptions("split"))
        return good, bad

    def _predict(
        self, x: Any, place: tuple[Any, str], batch_size: BatchSize, rows: RowOptions
    ) -> Any:
        encode, supplies, content = self._encoder(batch_size, rows)
        if isinstance(x, str):
            return self._run(encode, supplies, content, [x])[0]
        if is_bag(x):
            lazy = x.map_partitions(_BagTexts(encode), content, *supplies)
            if rows.on_error != "split":
                return lazy
            return lazy.map_partitions(_good_texts), lazy.map_partitions(_bad_texts)
        if is_table(x):
            from dask_onnx.collections.text import text_series as series  # needs pandas

            return series.predict_series(
                x,
                encode,
                series.TextPlace(*place),
                self._width(),
                lambda texts: self._compute(encode, supplies, content, texts),
                [content, *supplies],
            )
        return self._run(encode, supplies, content, list(x))

    def _width(self) -> int | None:
        spec = self.model._facts.declared.get(self.output)
        last = spec.shape[-1] if spec is not None and spec.shape else None
        return last if isinstance(last, int) else None

    def _encoder(
        self, batch_size: BatchSize, rows: RowOptions
    ) -> tuple[Encoder, list[Delayed], Delayed]:
        request = partition_request(self.model._facts, RunOptions([self.output], batch_size))
        graph = inline_graph(request, list(self._feeds), [self.output])
        name = hashlib.sha256(self._content).hexdigest()
        encode = Encoder(
            graph,
            self.output,
            self._feeds,
            self._options,
            rows,
            name,
            digest(sorted(map(str, graph.tasks))),
        )
        content = delayed(self._content, name=f"tokenizer-{name}", traverse=False)
        return encode, supply_collections(request), content

    def _run(
        self, encode: Encoder, supplies: Sequence[Delayed], content: Delayed, texts: list[Any]
    ) -> Any:
        found = self._compute(encode, supplies, content, texts)
        if encode.rows.on_error == "split":
            vectors = (
                np.empty((0, self._width() or 0), np.float32)
                if found.values is None
                else vectors_of(found)
            )
            return vectors, bad_items(texts, found)
        return encode.filled(found, len(texts), self._width())

    def _compute(
        self, encode: Encoder, supplies: Sequence[Delayed], content: Delayed, texts: list[Any]
    ) -> Found:
        """Encode texts at once, on the scheduler that Dask chooses."""
        starts = range(0, max(len(texts), 1), _TEXTS_OF_A_TASK)
        parts = [texts[start : start + _TEXTS_OF_A_TASK] for start in starts]
        # Without traverse=False, Dask would search the encoder for collections.
        run = delayed(encode, pure=True, traverse=False)
        lazy = [run(content, part, *supplies) for part in parts]
        return join_found(list(zip(starts, compute_now(lazy), strict=True)))


@dataclass(frozen=True, slots=True, eq=False)
class _BagTexts(InlineTask):
    """Function that `Bag.map_partitions` calls: the encoder on the texts of one partition."""

    encode: Encoder

    @property
    def inline(self) -> InlineGraph:
        """Stages to run."""
        return self.encode.graph

    def __call__(self, texts: Iterable[Any], content: bytes, *supplies: Any) -> list[Any]:
        """Return the vectors, or for "split" one pair of vectors and bad texts."""
        given = list(texts)
        found = self.encode(content, given, *supplies)
        self.encode.raise_first(
            found,
            len(given),
            lambda place: f"text {place:,} of the {len(given):,} of its partition: ",
        )
        values = [] if found.values is None else vectors_of(found)
        if self.encode.rows.on_error == "split":
            return [(list(values), bad_items(given, found))]
        return in_place(found, values, None)

    def __dask_tokenize__(self) -> Any:
        return self.encode.__dask_tokenize__()


def _good_texts(parts: Iterable[Any]) -> list[Any]:
    return [vector for good, _ in parts for vector in good]


def _bad_texts(parts: Iterable[Any]) -> list[Any]:
    return [item for _, bad in parts for item in bad]


def _text_feeds(
    inputs: Sequence[TensorSpec], given: Mapping[str, str]
) -> dict[str, tuple[str, np.dtype[Any]]]:
    """Return the tokenizer's output that feeds each input, and the input's dtype.

    Raises
    ------
    InputError
        The output for an input is not known, or the caller names one for an input that is not
        there.
    """
    names = [spec.name for spec in inputs]
    for name in given:
        if name not in names:
            raise InputError(
                f"feeds names {name!r}, which is no input that the output needs",
                f"the inputs are {', '.join(map(repr, names)) or 'none'}",
                option="feeds",
                input=str(name),
            )
    usual = {name: kind for kind, names in _KINDS.items() for name in names}
    feeds = {}
    for spec in inputs:
        kind = given.get(spec.name, usual.get(spec.name))
        if kind not in _KINDS or spec.dtype is None or spec.dtype.kind not in "iuf":
            raise InputError(
                f"cannot infer which tokenizer output feeds input {spec}",
                f"name it: feeds={{{spec.name!r}: 'ids' | 'mask' | 'types'}}",
                option="feeds",
                input=spec.name,
                suggestions=[Suggestion("feeds", {spec.name: each}) for each in _KINDS],
            )
        feeds[spec.name] = (kind, spec.dtype)
    return feeds
