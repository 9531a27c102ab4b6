"""Names of dimensions that exporters repeat on unequal axes, or that mean nothing."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from builders import make_model, node, run_onnx, value, weights

import dask_onnx as dx

SHAPES = {"x": (3, 4), "z": (5, 4)}
W = {"W": weights(4, 4)}


def feeds_of(**shapes):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def relu(dims, out):
    return make_model([node("Relu", "x", "y")], [value("x", dims)], [value("y", out)])


def beside(symbol):
    """Return two branches that read one input each, of the same symbolic first axis."""
    return make_model(
        [node("Relu", "x", "y"), node("MatMul", "z W", "w")],
        [value("x", [symbol, 4]), value("z", [symbol, 4])],
        [value("y", [symbol, 4]), value("w", [symbol, 4])],
        W,
    )


def joined(op, **attributes):
    inputs = [value("x", ["N", 4]), value("z", ["N", 4])]
    return make_model([node(op, "x z", "y", **attributes)], inputs, [value("y", None)])


CASES = {
    "one name on both axes": (relu(["N", "N"], ["N", "N"]), {"x": (3, 4)}),
    "None on both axes": (relu(["None", "None"], ["None", "None"]), {"x": (3, 4)}),
    "turned": (
        make_model(
            [node("Transpose", "x", "y")], [value("x", ["N", "N"])], [value("y", ["N", "N"])]
        ),
        {"x": (3, 4)},
    ),
    "two branches": (beside("N"), SHAPES),
    "two branches, None": (beside("None"), SHAPES),
    "two branches, ?": (beside("?"), SHAPES),
    "two branches, unk__1": (beside("unk__1"), SHAPES),
    "broadcast": (joined("Add"), {"x": (3, 4), "z": (1, 4)}),
    "concatenated": (joined("Concat", axis=0), SHAPES),
    "output of size 0": (relu(["N", 4], [0, 4]), {"x": (3, 4)}),
    "output of size -1": (relu([-1, 4], [-1, 4]), {"x": (3, 4)}),
}


def named(result, model):
    return result if isinstance(result, dict) else {model.graph.output[0].name: result}


@pytest.mark.parametrize("face", ["numpy", "dask.array", "per_node", "delayed"])
@pytest.mark.parametrize("name", CASES)
def test_sizes_that_onnx_runtime_takes_are_taken(name, face):
    model, shapes = CASES[name]
    feeds = feeds_of(**shapes)
    names = [output.name for output in model.graph.output]
    expected = dict(zip(names, run_onnx(model, feeds), strict=True))
    loaded = dx.load(model)
    if face == "dask.array":
        lazy = named(
            loaded.predict({n: da.from_array(a, chunks=-1) for n, a in feeds.items()}), model
        )
        assert {n: array.shape for n, array in lazy.items()} == {
            n: array.shape for n, array in expected.items()
        }
        (found,) = dask.compute(lazy, scheduler="sync")
    elif face == "delayed":
        given = {n: dask.delayed(a) for n, a in feeds.items()}
        (found,) = dask.compute(loaded.predict(given), scheduler="sync")
    elif face == "per_node":
        found = loaded.predict(feeds, plan=loaded.plan("per_node"))
    else:
        found = loaded.predict(feeds)
    found = named(found, model)
    for each in names:
        np.testing.assert_array_equal(found[each], expected[each])


def test_sizes_that_no_node_could_take_are_refused_before_work():
    model = dx.load(joined("Add"))
    feeds = feeds_of(x=(3, 4), z=(2, 4))
    for given in (feeds, {n: da.from_array(a) for n, a in feeds.items()}):
        with pytest.raises(dx.InputError) as raised:
            model.predict(given)
        assert raised.value.numbers == {"size": 2, "expected_size": 3}
    with pytest.raises(dx.InputError):
        model.check(feeds)


def test_rows_of_two_numbers_are_not_cut_together():
    model = dx.load(beside("N"))
    feeds = feeds_of(**SHAPES)
    with pytest.raises(dx.InputError):
        model.predict({n: da.from_array(a, chunks=(2, 4)) for n, a in feeds.items()})
    # The same model with equal numbers of rows is cut, before and after.
    equal = feeds_of(x=(4, 4), z=(4, 4))
    expected = run_onnx(beside("N"), equal)
    for _ in range(2):
        lazy = model.predict({n: da.from_array(a, chunks=(2, 4)) for n, a in equal.items()})
        (found,) = dask.compute(lazy, scheduler="sync")
        for array, name in zip(expected, ("y", "w"), strict=True):
            np.testing.assert_allclose(found[name], array, rtol=1e-6)
        model.predict(feeds)


@pytest.mark.parametrize(
    "name",
    ["", "?", "None", "none", "-1", "unk__12", "dynamic", "unknown", "x_dynamic_axes_1", "*"],
)
def test_names_that_mean_nothing_are_no_names(name):
    assert dx.load(relu([name, 4], [name, 4])).inputs[0].shape == (None, 4)


@pytest.mark.parametrize("name", ["N", "batch", "past + 1", "unk", "nonempty", "s0", "seq_len"])
def test_other_names_stay(name):
    expected = None if name == "unk" else name
    assert dx.load(relu([name, 4], [name, 4])).inputs[0].shape == (expected, 4)
