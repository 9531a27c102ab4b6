"""Metadata of lazy collections equal those of the computed results."""

from __future__ import annotations

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import dask_onnx as dx

pytestmark = pytest.mark.real
COUNT = 5
LISTS = {
    "deepcut": {"input_1": (21, "f4", 178), "input_2": (21, "f4", 12)},
    "oskut_deepcut": {"inputs": (21, "f4", 178), "inputs_1": (21, "f4", 12)},
    "magika": {"bytes": (2048, "i4", 256)},
    "minilm": {
        "input_ids": (16, "i8", 20_000),
        "attention_mask": (16, "i8", 2),
        "token_type_ids": (16, "i8", 1),
    },
    "tashkeel": {"input_ids": (12, "i8", 20)},
    "rawi": {"input": (12, "i8", 20)},
}
DEPENDENT = {"tashkeel", "rawi"}
"""Models whose rows depend on each other, and so must be in one partition."""
IMAGES = {"det": (3, 64, 96), "cls": (3, 48, 192), "rec": (3, 48, 96)}


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("on_error", ["raise", "null"])
def test_a_table_of_lists_yields_the_dtypes_of_its_meta(asset, name, on_error):
    model = dx.load(asset(f"{name}.onnx"))
    rng = np.random.default_rng(0)
    assert [spec.name for spec in model.inputs] == list(LISTS[name])
    kinds = {"f4": pa.float32(), "i4": pa.int32(), "i8": pa.int64()}
    table = pd.DataFrame(
        {
            column: pd.Series(
                list(rng.integers(0, top, (COUNT, size)).astype(dtype)),
                dtype=pd.ArrowDtype(pa.list_(kinds[dtype], size)),
            )
            for column, (size, dtype, top) in LISTS[name].items()
        }
    )
    npartitions = 1 if name in DEPENDENT else 2
    lazy = model.predict(dd.from_pandas(table, npartitions=npartitions), on_error=on_error)
    found = lazy.compute()
    assert (lazy.dtypes == found.dtypes).all() and len(found) == COUNT
    assert (model.meta_for(table, on_error=on_error).dtypes == found.dtypes).all()


@pytest.mark.parametrize("on_error", ["raise", "null"])
def test_lists_of_unequal_length_yield_the_dtypes_of_their_meta(asset, on_error):
    table = pd.DataFrame({"input_ids": [[1, 2, 3], [4], [5, 6, 7, 8, 9]]})
    model = dx.load(asset("tashkeel.onnx"))
    options = {"length_buckets": [4, 8], "on_error": on_error}
    with dask.config.set({"dataframe.convert-string": False}):
        lazy = model.predict(dd.from_pandas(table, npartitions=1), **options)
        found = lazy.compute()
    assert (lazy.dtypes == found.dtypes).all()
    assert (model.meta_for(table, **options).dtypes == found.dtypes).all()
    assert [len(row) for row in found["logits"]] == [3, 1, 5]


@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_op15"])
def test_a_state_is_refused_as_a_column(asset, name):
    model = dx.load(asset(f"{name}.onnx"))
    lists = pd.Series([[0.0] * 4] * 2, dtype=pd.ArrowDtype(pa.list_(pa.float32(), 4)))
    table = pd.DataFrame({"input": lists, "state": lists, "sr": [16_000] * 2})
    for given in (table, dd.from_pandas(table, npartitions=1)):
        for ask in (model.predict, model.meta_for):
            with pytest.raises(dx.InputError) as caught:
                ask(given)
            assert caught.value.fields == {"input": "state", "numbers": {"expected_rank": 3}}


@pytest.mark.parametrize(("name", "chunk"), [("silero_vad", 4), ("silero_vad_op15", 2)])
def test_a_state_has_its_declared_dtype_and_shape(asset, name, chunk):
    # Only the second declares that rows of state and input are the same, so that both can be cut.
    model = dx.load(asset(f"{name}.onnx"))
    feeds = {
        "input": np.random.default_rng(0).standard_normal((4, 576), dtype=np.float32),
        "state": np.zeros((2, 4, 128), np.float32),
        "sr": np.array(16_000),
    }
    lazy = model.predict(
        {
            "input": da.from_array(feeds["input"], chunks=(chunk, -1)),
            "state": da.from_array(feeds["state"], chunks=(-1, chunk, -1)),
            "sr": feeds["sr"],
        }
    )
    (found,) = dask.compute(lazy)
    (again,) = dask.compute(model.predict({n: dask.delayed(v) for n, v in feeds.items()}))
    assert list(lazy) == list(found) == list(again) == ["output", "stateN"]
    assert found["stateN"].shape == (2, 4, 128)
    for spec in model.outputs:
        array = found[spec.name]
        assert lazy[spec.name].dtype == array.dtype == again[spec.name].dtype == spec.dtype
        assert array.shape == again[spec.name].shape
        shapes = zip(lazy[spec.name].shape, array.shape, strict=True)
        assert all(np.isnan(said) or said == is_ for said, is_ in shapes)
        np.testing.assert_allclose(array, again[spec.name], atol=1e-6)


@pytest.mark.parametrize("name", IMAGES)
def test_an_array_has_its_declared_dtype_and_shape(asset, name):
    model = dx.load(asset(f"{name}.onnx"))
    images = np.random.default_rng(0).standard_normal((3, *IMAGES[name]), dtype=np.float32)
    lazy = model.predict(da.from_array(images, chunks=(2, -1, -1, -1)))
    found = lazy.compute()
    assert lazy.dtype == found.dtype
    assert all(
        np.isnan(said) or said == is_ for said, is_ in zip(lazy.shape, found.shape, strict=True)
    )
    assert not np.isnan(lazy.shape[0])


def test_columns_are_refused_for_images(asset):
    table = pd.DataFrame({"x": [1.0]})
    with pytest.raises(dx.InputError) as caught:
        dx.load(asset("det.onnx")).predict(table)
    assert caught.value.numbers == {"expected_rank": 4}
