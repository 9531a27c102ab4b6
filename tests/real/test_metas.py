"""What lazy collections say of themselves before anything runs is what comes out."""

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
}
IMAGES = {"det": (3, 64, 96), "cls": (3, 48, 192), "rec": (3, 48, 96)}


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("on_error", ["raise", "null"])
def test_a_table_of_lists_gives_the_dtypes_that_its_meta_says(asset, name, on_error):
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
    lazy = model.predict(dd.from_pandas(table, npartitions=2), on_error=on_error)
    found = lazy.compute()
    assert (lazy.dtypes == found.dtypes).all() and len(found) == COUNT
    assert (model.meta_for(table, on_error=on_error).dtypes == found.dtypes).all()


@pytest.mark.parametrize("name", IMAGES)
def test_an_array_has_the_dtype_and_the_shape_that_it_says(asset, name):
    model = dx.load(asset(f"{name}.onnx"))
    images = np.random.default_rng(0).standard_normal((3, *IMAGES[name]), dtype=np.float32)
    lazy = model.predict(da.from_array(images, chunks=(2, -1, -1, -1)))
    found = lazy.compute()
    assert lazy.dtype == found.dtype
    assert all(
        np.isnan(said) or said == is_ for said, is_ in zip(lazy.shape, found.shape, strict=True)
    )
    assert not np.isnan(lazy.shape[0])


def test_images_are_no_columns(asset):
    table = pd.DataFrame({"x": [1.0]})
    with pytest.raises(dx.InputError, match="has rank 4; columns make rows of numbers"):
        dx.load(asset("det.onnx")).predict(table)
