"""Labelled arrays keep the labels of their rows."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from builders import dense_model, make_model, node, run_onnx, value

import dask_onnx as dx

ROWS = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
EXPECTED = run_onnx(dense_model(), {"x": ROWS})[0]


def labelled(data):
    coords = {
        "time": np.arange(6) * 10,
        "station": ("time", list("abcdef")),
        "band": list("ABCDEFGH"),
        "run": 7,
    }
    return xr.DataArray(data, dims=["time", "band"], coords=coords, name="signal")


@pytest.mark.parametrize("lazy", [False, True])
def test_the_rows_keep_their_labels(lazy):
    x = labelled(da.from_array(ROWS, chunks=(2, 8)) if lazy else ROWS)
    with dask.config.set(scheduler="sync"):
        found = dx.load(dense_model()).predict(x)
        assert isinstance(found, xr.DataArray) and (found.chunks is not None) is lazy
        np.testing.assert_allclose(found.to_numpy(), EXPECTED, rtol=1e-6)
    assert found.dims == ("time", "y_1") and found.name == "y"
    assert set(found.coords) == {"time", "station", "run"}
    assert found.sel(time=30).station == "d"


def test_several_outputs_are_a_dict():
    found = dx.load(dense_model()).predict(labelled(ROWS), outputs=["y", "h3"])
    assert {name: array.dims for name, array in found.items()} == {
        "y": ("time", "y_1"),
        "h3": ("time", "h3_1"),
    }


def test_without_rows_there_is_nothing_to_keep():
    model = dx.load(
        make_model([node("Transpose", "x", "y")], [value("x", [6, 8])], [value("y", [8, 6])])
    )
    with pytest.raises(dx.InputError, match="no batch axis, so no dimension is kept"):
        model.predict(labelled(ROWS))
