"""ONNX's shape inference with a node on which it raises."""

from __future__ import annotations

import onnx
import pytest
from builders import make_model, node, value
from onnx.shape_inference import InferenceError

from dask_onnx.analysis import onnx_inference
from dask_onnx.analysis.onnx_inference import inferred_model


def chain(*domains: str) -> onnx.ModelProto:
    """Return a chain of Relu nodes, each in its domain; inference raises on one not imported."""
    nodes = [node("Relu", f"v{i}", f"v{i + 1}", domain=d) for i, d in enumerate(domains)]
    last = f"v{len(domains)}"
    return make_model(nodes, [value("v0", [2, 3])], [value(last, None)])


def shapes_in(model: onnx.ModelProto) -> dict[str, list[int]]:
    values = (*model.graph.value_info, *model.graph.output)
    return {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in values
        if v.type.tensor_type.HasField("shape")
    }


@pytest.mark.parametrize("bad", [(1,), (0,), (3,), (1, 3), (0, 1, 2, 3)])
def test_only_nodes_behind_a_fault_have_no_shape(bad):
    model = chain(*("missing" if i in bad else "" for i in range(4)))
    with pytest.raises(InferenceError):
        inferred_model(model, mode="raise")
    before = model.SerializeToString()
    found = shapes_in(inferred_model(model))
    assert found == {f"v{i + 1}": [2, 3] for i in range(min(bad))}
    assert model.SerializeToString() == before


def test_a_branch_beside_the_fault_has_its_shapes():
    nodes = [
        node("Relu", "x", "a", domain="missing"),
        node("Relu", "x", "b"),
        node("Neg", "b", "c"),
    ]
    model = make_model(nodes, [value("x", [2, 3])], [value("a", None), value("c", None)])
    assert shapes_in(inferred_model(model)) == {"b": [2, 3], "c": [2, 3]}


def test_more_faults_than_are_searched_for_end_the_inference():
    model = chain(*[""] * 3, *["missing"] * 40, "")
    assert shapes_in(inferred_model(model)) == {f"v{i}": [2, 3] for i in (1, 2, 3)}


def test_a_sound_model_is_inferred_alike_in_all_modes():
    model = chain("", "")
    assert shapes_in(inferred_model(model)) == shapes_in(inferred_model(model, mode="strict"))


def test_a_fault_outside_of_nodes_leaves_the_model_as_it_is(monkeypatch):
    def refuse(*_, **__):
        raise InferenceError("an output does not fit, whatever the nodes are")

    monkeypatch.setattr(onnx_inference, "_infer", refuse)
    model = chain("", "")
    assert inferred_model(model) == model
