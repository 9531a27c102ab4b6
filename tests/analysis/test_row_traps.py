"""Claims about rows of hostile graphs, against ONNX Runtime on all rows at once."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import onnxruntime
import pytest
from builders import make_model, node, value
from row_traps import Trap
from row_traps_meeting import MEETING
from row_traps_places import PLACES
from row_traps_sizes import SIZES

import dask_onnx as dx

TRAPS = (*SIZES, *MEETING, *PLACES)
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


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_numbers_drawn_from_a_seed_are_drawn_for_all_rows_at_once(op):
    nodes = [node("Sigmoid", "x", "p"), node(op, "p", "y", "draw", seed=7.0)]
    model = dx.load(make_model(nodes, [value("x", ["N", 3])], [value("y", ["N", 3])]))
    x = np.random.default_rng(0).standard_normal((6, 3), np.float32)
    with pytest.raises(dx.InputError, match="draw"):
        model.predict(x, batch_size=3)
    drawn = model.predict(x)
    assert not np.array_equal(drawn[:3], drawn[3:])
    assert np.array_equal(drawn, model.predict(x))


def test_dropout_with_a_seed_is_cut_unless_it_trains():
    ends = [value("x", ["N", 3])], [value("y", ["N", 3])]
    x = np.random.default_rng(0).standard_normal((6, 3), np.float32)
    for trains in (False, True):
        constants = {"ratio": np.float32(0.5), "training": np.array(trains)}
        nodes = [node("Dropout", "x ratio training", "y", "drop", seed=3)]
        model = dx.load(make_model(nodes, *ends, constants))
        assert bool(model.analysis.batch.blockers) is trains
        if not trains:
            assert np.array_equal(model.predict(x, batch_size=2), x)


def test_inputs_joined_along_the_rows_are_no_rows_of_the_output():
    inputs = [value(name, ["N", 3]) for name in "xz"]
    proto = make_model([node("Concat", "x z", "y", "join", axis=0)], inputs, [value("y", None)])
    fact = dx.load(proto).axes().of("x", 0)
    assert (fact.kind, fact.node, fact.is_independent) == ("factored", "join", False)
    feeds = {name: np.random.default_rng(0).standard_normal((4, 3), np.float32) for name in "xz"}
    assert dx.verify_axes(dx.load(proto), feeds).is_right
