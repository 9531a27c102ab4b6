"""Vectors of sentences by MiniLM and its tokenizer."""

from __future__ import annotations

import dask
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tokenizers

import dask_onnx as dx

pytestmark = pytest.mark.real

SENTENCES = [
    "A cat sits on the mat.",
    "The feline is resting on a rug.",
    "Interest rates were raised by the central bank, which surprised nobody at all.",
    "Short.",
    "",
    "Dask schedules tasks on a cluster of machines, and keeps what they give in memory.",
]


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture
def encoder(asset):
    return lambda **options: dx.TextModel(
        dx.load(asset("minilm.onnx")), asset("minilm_tokenizer.json"), **options
    )


def one_by_one(asset, sentences, pooling="mean"):
    """Return the expected vectors: each sentence encoded alone, without padding."""
    tokenizer = tokenizers.Tokenizer.from_file(str(asset("minilm_tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    model = dx.load(asset("minilm.onnx"))
    vectors = []
    for sentence in sentences:
        row = tokenizer.encode(sentence)
        feeds = {
            "input_ids": np.array([row.ids]),
            "attention_mask": np.array([row.attention_mask]),
            "token_type_ids": np.array([row.type_ids]),
        }
        values = model.predict(feeds, outputs=model.outputs[0].name, batch_size=None)[0]
        vectors.append(values.mean(axis=0) if pooling == "mean" else values[0])
    return np.stack(vectors)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_vectors_equal_those_of_each_sentence_alone(asset, encoder, pooling):
    found = encoder(pooling=pooling).predict(SENTENCES)
    assert found.shape == (6, 384) and found.dtype == np.float32
    np.testing.assert_allclose(found, one_by_one(asset, SENTENCES, pooling), atol=2e-5)


def test_sentences_of_similar_meaning_are_near(encoder):
    vectors = encoder(normalize=True).predict(SENTENCES)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    near = vectors @ vectors[0]
    assert near.argsort()[-2] == 1


def test_every_collection_of_texts_yields_its_own_kind(encoder):
    model = encoder()
    expected = model.predict(SENTENCES)
    assert model.predict(SENTENCES[0]).shape == (384,)
    series = pd.Series(SENTENCES, index=range(10, 16), name="review")
    column = model.predict(series)
    assert column.dtype == pd.ArrowDtype(pa.list_(pa.float32(), 384))
    assert column.name == "review" and column.index.equals(series.index)
    np.testing.assert_allclose(np.stack(column.to_numpy()), expected, atol=2e-5)
    lazy = model.predict(dd.from_pandas(series.to_frame(), npartitions=2)["review"])
    computed = lazy.compute()
    assert lazy.dtype == computed.dtype == column.dtype
    np.testing.assert_allclose(np.stack(computed.to_numpy()), expected, atol=2e-5)
    bag = model.predict(db.from_sequence(SENTENCES, npartitions=2)).compute()
    np.testing.assert_allclose(np.stack(bag), expected, atol=2e-5)


def test_long_texts_are_truncated_or_read_in_windows(encoder):
    long = " ".join(SENTENCES) * 4
    first = encoder(max_length=32).predict([long])
    windows = encoder(window=32, stride=8, merge="first").predict([long, "Short."])
    np.testing.assert_allclose(windows[:1], first, atol=2e-5)
    mean = encoder(window=32, stride=8).predict([long, "Short."])
    assert np.abs(mean[0] - first[0]).max() > 1e-3
    np.testing.assert_allclose(mean[1], encoder().predict("Short."), atol=2e-5)
    largest = encoder(window=32, stride=8, merge="max").predict([long])
    assert (largest >= mean[0] - 1e-6).all()


@pytest.mark.parametrize("texts", [["a", None], pd.Series(["a", None])])
def test_missing_texts_are_counted(encoder, texts):
    with pytest.raises(dx.InputError) as caught:
        encoder().predict(texts)
    assert caught.value.numbers == {"row": 1, "rows": 2, "bad_rows": 1}


BAD = ["fine", None, b"also fine", b"\xff\xfe", "lone \udc80 surrogate", "good"]


def test_the_first_missing_text_of_several_tasks_is_the_error(encoder):
    texts: list[str | None] = ["a"] * 512
    texts[10] = texts[300] = None
    with pytest.raises(dx.InputError) as caught:
        encoder().predict(texts)
    assert caught.value.numbers["row"] == 10


def test_undecodable_texts_become_null_or_are_returned_separately(encoder):
    model = encoder()
    expected = model.predict(["fine", "also fine", "good"])
    series = pd.Series(BAD, index=list("pqrstu"), dtype=object, name="review")
    found = model.predict(series, on_error="null")
    assert found.isna().to_list() == [False, True, False, True, True, False]
    np.testing.assert_allclose(np.stack(found.dropna().to_numpy()), expected, atol=2e-5)
    rows = model.predict(BAD, on_error="null")
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, False, True, True, False]
    good, bad = model.predict_checked(series)
    assert list(good.index) == ["p", "r", "u"] and list(bad.index) == ["q", "s", "t"]
    assert bad["error"].to_list() == [
        "the text is missing, or of another type: None",
        "the text is not UTF-8: byte 0xff at byte 0 of '\\xff\\xfe'",
        "the text is not UTF-8: byte 0x80 at character 5 of 'lone \\x80 surrogate'",
    ]
    good, bad = model.predict_checked(BAD)
    assert good.shape == (3, 384) and [item["row"] for item in bad] == [BAD[1], BAD[3], BAD[4]]
    bag = db.from_sequence(BAD, npartitions=2)
    assert [v is None for v in model.predict(bag, on_error="null").compute()] == [
        *(False, True, False, True, True, False)
    ]
    good, bad = dask.compute(*model.predict_checked(bag))
    assert len(good) == len(bad) == 3
    with pytest.raises(dx.InputError) as caught:
        model.predict(bag).compute()
    # Either partition may fail first; the bad rows are counted within it.
    assert caught.value.numbers["rows"] == 3
    with pytest.raises(dx.InputError) as caught:
        model.predict(series)
    assert caught.value.numbers == {"row": 1, "rows": 6, "bad_rows": 3}
    assert "'q'" in caught.value.cause


@pytest.mark.parametrize("npartitions", [None, 2])
def test_a_table_keeps_its_columns(encoder, npartitions):
    table = pd.DataFrame({"review": SENTENCES, "stars": range(6)}, index=range(10, 16))
    table.loc[12, "review"] = None
    given = table if npartitions is None else dd.from_pandas(table, npartitions=npartitions)
    model = encoder()
    lazy = model.predict(given, column="review", on_error="null")
    (found,) = dask.compute(lazy)
    assert (lazy.dtypes == found.dtypes).all()
    assert list(found.columns) == ["review", "stars", "embedding"]
    assert found["embedding"].isna().to_list() == [False, False, True, False, False, False]
    good, bad = dask.compute(*model.predict_checked(given, column="review", name="v"))
    assert list(good.columns) == ["review", "stars", "v"] and len(good) == 5
    assert list(bad.columns) == ["review", "stars", "error"] and bad["stars"].to_list() == [2]
    for options, fields in (
        ({}, {"option": "column"}),
        ({"column": "text"}, {"option": "column", "column": "text"}),
        ({"column": "review", "name": "stars"}, {"option": "name", "column": "stars"}),
    ):
        with pytest.raises(dx.InputError) as caught:
            model.predict(given, **options)
        assert caught.value.fields == fields


def test_windows_can_be_returned_one_by_one(encoder):
    long = " ".join(SENTENCES) * 4
    texts = [long, "Short.", long]
    model = encoder(window=32, stride=8, merge=None)
    first, short, again = model.predict(texts)
    assert len(first) == len(again) > 3 and short.shape == (1, 384)
    mean = encoder(window=32, stride=8).predict(texts)
    np.testing.assert_allclose(first.mean(axis=0), mean[0], atol=2e-5)
    series = pd.Series(texts, index=list("abc"))
    for given in (series, dd.from_pandas(series, npartitions=2)):
        (rows,) = dask.compute(model.predict(given))
        assert list(rows.index) == ["a"] * len(first) + ["b"] + ["c"] * len(first)
        np.testing.assert_allclose(np.stack(rows["a"].to_numpy()), first, atol=2e-5)
    missing = model.predict(pd.Series(["Short.", None]), on_error="null")
    assert missing.isna().to_list() == [False, True]
    table = model.predict(pd.DataFrame({"t": texts, "n": [1, 2, 3]}), column="t")
    assert table["n"].to_list() == [1] * len(first) + [2] + [3] * len(first)


@pytest.mark.parametrize(
    ("options", "option", "numbers"),
    [
        ({"pooling": "sum"}, "pooling", {}),
        ({"window": 16, "stride": 15}, "stride", {"stride": 15, "tokens": 16}),
        ({"max_length": 1}, "max_length", {"tokens": 1}),
    ],
)
def test_invalid_options_are_refused(encoder, options, option, numbers):
    with pytest.raises(dx.InputError) as caught:
        encoder(**options)
    assert (caught.value.option, caught.value.numbers) == (option, numbers)


def test_a_model_without_token_inputs_is_refused(asset):
    model = dx.load(asset("magika.onnx"))
    with pytest.raises(dx.InputError) as caught:
        dx.TextModel(model, asset("minilm_tokenizer.json"))
    assert (caught.value.option, caught.value.input) == ("feeds", model.inputs[0].name)


def test_a_missing_tokenizer_file_is_an_error(asset):
    with pytest.raises(dx.ModelError) as caught:
        dx.TextModel(dx.load(asset("minilm.onnx")), "no/tokenizer.json")
    assert caught.value.option == "tokenizer"
