"""`Model.freed`: a number of rows that was fixed at export is opened if that is proven."""

from __future__ import annotations

import numpy as np
import pytest
from builders import make_model, node, run_onnx, value, weights

import dask_onnx as dx


def fixed_model(rows, has_dependent_rows=False):
    """Return a model that reshapes to its number of rows, and adds a state with as many rows."""
    last = [node("ReduceMean", "s", "m", "mix", axes=[0]), node("Sub", "s m", "y")]
    nodes = [
        node("MatMul", "x w", "m1"),
        node("Reshape", "m1 target", "r"),
        node("ReduceSum", "r two", "q", keepdims=0),
        node("Add", "q zeros", "s"),
        *(last if has_dependent_rows else [node("Identity", "s", "y")]),
    ]
    return make_model(
        nodes,
        [value("x", [rows, 6])],
        [value("y", [rows, 2])],
        {
            "w": weights(6, 6),
            "target": np.array([rows, 2, 3]),
            "two": np.array([2]),
            "zeros": np.zeros((rows, 2), np.float32),
        },
    )


@pytest.mark.parametrize("rows", [1, 4])
def test_freed_model_equals_the_original_on_any_number_of_rows(rows):
    model = dx.load(fixed_model(rows))
    freed = model.freed()
    assert freed.token != model.token
    assert freed.inputs[0].shape[1:] == (6,) and not isinstance(freed.inputs[0].shape[0], int)
    x = weights(rows * 3, 6, seed=2)
    pieces = [run_onnx(fixed_model(rows), {"x": part})[0] for part in np.split(x, 3)]
    np.testing.assert_allclose(freed(x), np.concatenate(pieces), rtol=1e-6)
    loaded = dx.load(fixed_model(rows), free_batch=True)
    assert loaded.token == freed.token


def test_freed_refuses_dependent_rows_with_the_node_as_reason():
    with pytest.raises(dx.ModelError) as caught:
        dx.load(fixed_model(4, has_dependent_rows=True)).freed()
    assert caught.value.node == "mix" and caught.value.reason
    assert caught.value.numbers == {"rows": 4}
