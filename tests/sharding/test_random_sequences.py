"""Random small graphs over a sequence: results on shards equal those of the whole model."""

from __future__ import annotations

from unittest import mock

import dask
import numpy as np
import pytest
from builders import make_model, node, run_onnx, value, weights
from hypothesis import given, settings
from hypothesis import strategies as st

import dask_onnx as dx
from dask_onnx.sharding import sequence_explain
from dask_onnx.sharding.strategy import Sharded

WIDTH = 4

_WEIGHTS = {
    "w": weights(WIDTH, WIDTH) / 2,
    "kernel": weights(WIDTH, WIDTH, 3) / 4,
    "zero": np.array(0),
    "one": np.array(1),
    "first": np.array([0]),
    "second": np.array([1]),
    "third": np.array([2]),
    "minus": np.array([-1]),
    "end": np.array([2**62]),
    "flat": np.array([-1, WIDTH]),
    "heads": np.array([0, 0, 2, 2]),
    "joined": np.array([0, 0, WIDTH]),
}

# Each takes values x (and z) of shape (N, T, WIDTH) and gives another of that shape.
_STEPS = {
    "relu": ["Relu x y"],
    "product": ["MatMul x w y"],
    "sum": ["Add x z y"],
    "attention": [
        "Transpose z t perm=0,2,1",
        "MatMul x t s",
        "Softmax s p axis=-1",
        "MatMul p z y",
    ],
    "keys first": [
        "Transpose z t perm=0,2,1",
        "MatMul x t s",
        "Softmax s p axis=1",
        "MatMul p z y",
    ],
    "outer": ["Transpose x t perm=0,2,1", "MatMul t z s", "MatMul x s y"],
    "centred": ["ReduceMean x m axes=1", "Sub x m y"],
    "scaled": ["ReduceMax x m axes=1,2", "Mul z m y"],
    "cumulative": ["CumSum x one y"],
    "shifted": [
        "Slice x first minus second a",
        "Slice x minus end second b",
        "Concat b a y axis=1",
    ],
    "picked": ["Gather x zero a axis=1", "Unsqueeze a second b", "Add z b y"],
    "convolved": [
        "Transpose x t perm=0,2,1",
        "Conv t kernel c pads=1,1",
        "Transpose c y perm=0,2,1",
    ],
    "flattened": ["Reshape x flat f", "MatMul f w g", "Shape x s", "Reshape g s y"],
    "heads": [
        "Reshape x heads h",
        "Transpose h t perm=0,2,1,3",
        "Softmax t p axis=-1",
        "Transpose p b perm=0,2,1,3",
        "Reshape b joined y",
    ],
    "positions": [
        "Shape x s",
        "Gather s one n",
        "Range zero n one r",
        "Cast r f to=1",
        "Unsqueeze f second c",
        "Add x c y",
    ],
    "mean by length": [
        "ReduceSum x second a",
        "Shape x s",
        "Gather s one n",
        "Cast n f to=1",
        "Div a f m",
        "Add x m y",
    ],
    "twice": ["Concat x z c axis=1", "Shape x s", "Gather s second n", "Slice c first n second y"],
}


def _nodes(step: str, number: int, x: str, z: str):
    """The nodes of a step, what they make under names of their own."""
    names = {"x": x, "z": z}
    made = []
    for line in _STEPS[step]:
        op, *words = line.split()
        attributes = {}
        while "=" in words[-1]:
            key, _, text = words.pop().partition("=")
            found = [int(each) for each in text.split(",")]
            attributes[key] = found if key in ("perm", "axes", "pads") else found[0]
        *inputs, output = words
        read = [names.get(each, each) for each in inputs]
        names[output] = f"v{number}.{output}"
        made.append(node(op, " ".join(read), names[output], names[output], **attributes))
    return made, names["y"]


@st.composite
def models(draw):
    """A graph of a few steps, each of which reads what was made before."""
    steps = draw(st.lists(st.sampled_from(sorted(_STEPS)), min_size=1, max_size=5))
    values, nodes = ["x"], []
    for number, step in enumerate(steps):
        x, z = draw(st.sampled_from(values)), values[-1]
        made, y = _nodes(step, number, x, z)
        nodes += made
        values.append(y)
    nodes.append(node("Identity", values[-1], "y", "result"))
    used = {name for each in nodes for name in each.input}
    made_weights = {name: array for name, array in _WEIGHTS.items() if name in used}
    shape = ["N", "T", WIDTH]
    return make_model(nodes, [value("x", shape)], [value("y", shape)], made_weights)


@pytest.fixture(autouse=True, scope="module")
def any_sharded_share():
    """Accept plans however little of them runs on shards."""
    with (
        dask.config.set(scheduler="sync"),
        mock.patch.object(sequence_explain, "_MIN_SHARDED_SHARE", 0.0),
    ):
        yield


@given(
    proto=models(),
    tokens=st.sampled_from([1, 2, 4, 5, 8, 13]),
    rows=st.integers(1, 2),
    n=st.integers(2, 4),
    key_blocks=st.sampled_from([None, 2]),
)
@settings(max_examples=40, deadline=None)
def test_every_plan_gives_what_onnx_runtime_gives(proto, tokens, rows, n, key_blocks):
    x = np.random.default_rng(tokens).standard_normal((rows, tokens, WIDTH)).astype(np.float32)
    model = dx.load(proto)
    shapes = {"x": x.shape}
    try:
        plan = model.plan(Sharded({"x": 1}, n, key_blocks), shapes=shapes)
    except dx.PlanError:
        # There is no attention whose keys can be read in blocks.
        assert key_blocks is not None
        plan = model.plan(Sharded({"x": 1}, n), shapes=shapes)
    (expected,) = run_onnx(proto, {"x": x})
    result = model.predict(x, plan=plan)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
