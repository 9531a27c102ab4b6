"""Claims about rows of hostile graphs, against ONNX Runtime on all rows at once."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import onnxruntime
import pytest
from row_traps import Trap
from row_traps_meeting import MEETING
from row_traps_sizes import SIZES

import dask_onnx as dx

TRAPS = (*SIZES, *MEETING)
ROWS = 5
CHUNKS = (1, 2, 2)


def reference(trap: Trap, feeds):
    session = onnxruntime.InferenceSession(trap.model().SerializeToString())
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def in_chunks(model, feeds, outputs):
    axes = model._facts.batch_at(tuple(outputs)).input_axes

    def chunked(name, value):
        axis = axes[name]
        if axis is not None and value.shape[axis] == 1:
            axis = next(i for i, size in enumerate(value.shape) if size % ROWS == 0)
        if axis is None:
            return value
        sizes = [n * value.shape[axis] // ROWS for n in CHUNKS]
        own = tuple(tuple(sizes) if i == axis else -1 for i in range(value.ndim))
        return da.from_array(value, chunks=own)

    found = model.predict({n: chunked(n, v) for n, v in feeds.items()}, outputs=outputs)
    return dict(zip(found, dask.compute(*found.values(), scheduler="sync"), strict=True))


def assert_equal(found, expected):
    for name, array in expected.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.name)
def test_rows_are_cut_only_where_results_stay_equal(trap):
    rng = np.random.default_rng(0)
    feeds = {name: draw(ROWS, rng) for name, draw in trap.inputs.items()}
    expected = reference(trap, feeds)
    model, outputs = dx.load(trap.model()), list(expected)
    assert_equal(model.predict(feeds, outputs=outputs), expected)
    if trap.is_cut:
        assert_equal(model.predict(feeds, outputs=outputs, batch_size=2), expected)
        assert_equal(in_chunks(model, feeds, outputs), expected)
        return
    with pytest.raises(dx.InputError):
        model.predict(feeds, outputs=outputs, batch_size=2)
    with pytest.raises(dx.InputError):
        in_chunks(model, feeds, outputs)


def test_traps_are_of_both_kinds():
    assert sum(trap.is_cut for trap in TRAPS) > 15
    assert len(TRAPS) > 90
    assert len({trap.name for trap in TRAPS}) == len(TRAPS)
