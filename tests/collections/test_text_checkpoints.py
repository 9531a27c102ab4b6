"""Vectors of texts that are kept partition by partition."""

from __future__ import annotations

from pathlib import Path

import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from builders import make_model, node, value, weights
from onnx import TensorProto
from tokenizers import Tokenizer, models, pre_tokenizers

import dask_onnx as dx

TEXTS = ["one", "two one", "three", "one two three", "two", "three three", "one", "two two"]


@pytest.fixture
def encoder():
    """An encoder that looks up a vector for each token."""
    words = {word: place for place, word in enumerate(["[UNK]", "one", "two", "three"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = make_model(
        [node("Gather", "table input_ids", "vectors")],
        [value("input_ids", ("N", "T"), TensorProto.INT64)],
        [value("vectors", ("N", "T", 5))],
        {"table": weights(4, 5)},
    )
    return dx.TextModel(dx.load(model), tokenizer)


def as_arrays(found):
    return np.stack([np.asarray(each) for each in found])


@pytest.mark.parametrize("kind", ["series", "frame", "bag"])
def test_texts_are_kept_and_taken_up_again(encoder, tmp_path, kind):
    series = pd.Series(TEXTS, name="text", dtype="string")
    x = {
        "series": lambda: dd.from_pandas(series.to_frame(), npartitions=4)["text"],
        "frame": lambda: dd.from_pandas(series.to_frame(), npartitions=4),
        "bag": lambda: db.from_sequence(TEXTS, npartitions=4),
    }[kind]()
    options = {"column": "text"} if kind == "frame" else {}
    expected = encoder.predict(x, **options).compute(scheduler="sync")
    for _ in range(2):
        lazy = encoder.predict(x, **options, checkpoint=tmp_path / "kept")
        found = lazy.compute(scheduler="sync")
        if kind == "bag":
            np.testing.assert_array_equal(as_arrays(found), as_arrays(expected))
        elif kind == "series":
            pd.testing.assert_series_equal(found, expected)
        else:
            pd.testing.assert_frame_equal(found, expected)
        assert len(list(Path(tmp_path, "kept").glob("chunks.*/*"))) == 4


def test_other_options_and_texts_in_memory_are_refused(encoder, tmp_path):
    bag = db.from_sequence(TEXTS, npartitions=2)
    encoder.predict(bag, checkpoint=tmp_path / "kept").compute(scheduler="sync")
    for x, options in (
        (bag, {"on_error": "null"}),
        (bag, {"batch_size": 1}),
        (db.from_sequence(TEXTS, npartitions=4), {}),
        (TEXTS, {}),
        ("one", {}),
        (pd.Series(TEXTS), {}),
    ):
        with pytest.raises(dx.InputError) as caught:
            encoder.predict(x, **options, checkpoint=tmp_path / "kept")
        assert caught.value.option == "checkpoint"
