"""Facts of graphs about their own scaling and their outputs."""

from __future__ import annotations

import numpy as np
import pytest
from builders import make_model, node, value
from image_models import echo
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.collections.images.graph_hints import channels_first, scales_itself

BGR = np.array([103.94, 116.78, 123.68], np.float32).reshape(1, 3, 1, 1)


def first_node(op, constant, shape=("N", 3, 8, 8), before=()):
    last = before[-1].output[0] if before else "x"
    return make_model(
        [*before, node(op, f"{last} c", "s"), node("Identity", "s", "y")],
        [value("x", shape)],
        [value("y", None)],
        {"c": np.asarray(constant, np.float32)},
    )


@pytest.mark.parametrize(
    ("op", "constant", "color"),
    [
        ("Div", 255, None),
        ("Mul", 1 / 127.5, None),
        ("Sub", 127.5, None),
        ("Sub", BGR, "BGR"),
        ("Add", -BGR[:, ::-1], "RGB"),
    ],
)
def test_a_graph_that_scales_takes_pixel_values(op, constant, color):
    proto = first_node(op, constant)
    found = scales_itself(dx.load(proto).facts, "x")
    assert found is not None and found.color == color
    model = dx.ImageModel(dx.load(proto))
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    order = picture[..., ::-1] if color == "BGR" else picture
    np.testing.assert_array_equal(model.preprocess(picture)[0], order.transpose(2, 0, 1))
    assert op in repr(model)


@pytest.mark.parametrize(("op", "constant"), [("Div", 2), ("Mul", 3), ("Sub", 0.5), ("Mul", 0)])
def test_other_first_nodes_tell_nothing(op, constant):
    with pytest.raises(dx.InputError) as caught:
        dx.ImageModel(dx.load(first_node(op, constant)))
    assert caught.value.option == "preset"


def test_a_transpose_before_it_says_that_channels_come_last():
    proto = first_node(
        "Div",
        255,
        ("N", "H", "W", "C"),
        [node("Transpose", "x", "t", perm=[0, 3, 1, 2])],
    )
    facts = dx.load(proto).facts
    assert channels_first(facts, "x") is False
    assert scales_itself(facts, "x") is not None


@pytest.mark.parametrize("elem_type", [TensorProto.BOOL, TensorProto.STRING])
def test_inputs_without_numbers_take_no_pictures(elem_type):
    with pytest.raises(dx.InputError) as caught:
        dx.ImageModel(dx.load(echo(("N", 3, 8, 8), elem_type)), scale=1)
    assert caught.value.option == "input"
