"""Heads that have no tiles run untiled on the features that tiles have computed."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import onnx
import pytest
from builders import make_model, node, run_onnx, value
from onnx import TensorProto, helper
from tiles.tiled_models import conv, kernel, random_image

import dask_onnx as dx
from dask_onnx.tiles.predict import predict_tiled

INT64 = TensorProto.INT64
ENDS = {"one": kernel(1, 3, 1, 1), "w": kernel(3, 3, 3, 3)}
FLAT = [conv("x one", "a"), node("Reshape", "a flat", "f")]
BOXES = [
    conv("x four", "b"), node("Reshape", "b to_boxes", "r"),
    node("Transpose", "r", "boxes", perm=[0, 2, 1]),
    conv("x one", "s"), node("Reshape", "s to_scores", "scores"),
    node("NonMaxSuppression", "boxes scores most iou", "selected"),
]  # fmt: skip
FEATURES = [conv("x w", "a", pads=[1] * 4)]


def an_if():
    def branch(op, name):
        body_node = helper.make_node(op, ["a"], [name])
        return helper.make_graph([body_node], name, [], [value(name, None)])

    chosen = node("If", "c", "y", then_branch=branch("Neg", "t"), else_branch=branch("Abs", "e"))
    return [node("ReduceMax", "a", "top", keepdims=0), node("Greater", "top zero", "c"), chosen]


HEADS = {
    "top k": ([*FLAT, node("TopK", "f k", "v i", axis=1)], {"v": 1, "i": INT64}),
    "argmax": ([*FLAT, node("ArgMax", "f", "y", axis=1)], {"y": INT64}),
    "cumulative": ([*FEATURES, node("CumSum", "a two", "y")], {"y": 1}),
    "non-maximum": (BOXES, {"selected": INT64}),
    "picked": ([*BOXES, node("Gather", "selected two", "n", axis=1),
                node("Gather", "boxes n", "y", axis=1)], {"y": 1, "selected": INT64}),
    "counted": ([*BOXES, node("Shape", "selected", "n"), node("Cast", "n", "y", to=1)], {"y": 1}),
    "indices": ([conv("x one", "a"), node("Greater", "a zero", "g"), node("NonZero", "g", "y")],
                {"y": INT64}),
    "branches": ([*FEATURES, *an_if()], {"y": 1}),
    "recurrence": ([*FEATURES, node("ReduceMean", "a", "m", axes=[2], keepdims=0),
                    node("Transpose", "m", "t", perm=[2, 0, 1]),
                    node("RNN", "t rw rr", "y", hidden_size=2)], {"y": 1}),
}  # fmt: skip
CONSTANTS = {
    **ENDS, "four": kernel(4, 3, 1, 1), "flat": np.array([1, -1]), "k": np.array([5]),
    "two": np.array(2), "zero": np.array(0.1, np.float32), "to_boxes": np.array([1, 4, -1]),
    "to_scores": np.array([1, 1, -1]), "most": np.array([7]), "iou": np.array([0.5], np.float32),
    "rw": kernel(1, 2, 3), "rr": kernel(1, 2, 2),
}  # fmt: skip


def model_with(head) -> tuple[onnx.ModelProto, list[str]]:
    nodes, outputs = HEADS[head]
    read = {name for each in nodes for name in each.input}
    constants = {name: array for name, array in CONSTANTS.items() if name in read}
    declared = [value(name, None, dtype) for name, dtype in outputs.items()]
    proto = make_model(nodes, [value("x", ["N", 3, "H", "W"])], declared, constants, opset=17)
    return proto, list(outputs)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_needs_all_positions_equals_the_untiled_result(head):
    proto, names = model_with(head)
    image = random_image(1, 3, 40, 48)
    lazy = predict_tiled(
        dx.load(proto), da.from_array(image, 17), tile=16, axes=(2, 3), outputs=names
    )
    keys = [key if isinstance(key, str) else key[0] for key in lazy[names[0]].__dask_graph__()]
    verbs = {key.partition("_")[0] for key in keys}
    assert "tile0" in verbs
    assert any(verb.startswith("untiled") for verb in verbs)
    found = dict(zip(names, dask.compute(*lazy.values(), scheduler="sync"), strict=True))
    for name, expected in zip(names, run_onnx(proto, {"x": image}), strict=True):
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=2e-5, err_msg=name)
        for known, size in zip(lazy[name].shape, expected.shape, strict=True):
            assert np.isnan(known) or known == size


@pytest.mark.parametrize("head", ["top k", "non-maximum", "branches"])
def test_a_head_too_large_for_a_task_is_refused_with_its_node(head):
    proto, names = model_with(head)
    model = dx.load(proto)
    with pytest.raises(dx.InputError) as caught:
        predict_tiled(
            model, random_image(1, 3, 40, 48), tile=8, axes=(2, 3), outputs=names, memory_limit=5000
        )
    last = [each.name for each in model.facts.nodes][-1]
    assert caught.value.node == last
    assert caught.value.numbers["needed_bytes"] > 5000 == caught.value.numbers["limit_bytes"]
    assert "detect_sliced" in caught.value.next_step
