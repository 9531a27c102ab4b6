"""ZipMap and Optional become Identity on loading, and come back when a model is written."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import make_model, node, value
from onnx import TensorProto, helper

from dask_onnx.modelio.onnx_model import load_onnx, with_weights
from dask_onnx.modelio.plain_outputs import class_labels_of

ML = {"domain": "ai.onnx.ml"}
SCALAR = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
TEXT_KEYS = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.STRING, SCALAR))
INT_KEYS = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, SCALAR))
LABELS = {
    "strings": ({"classlabels_strings": ["é", "b", ""]}, TEXT_KEYS, ("é", "b", "")),
    "integers": ({"classlabels_int64s": [7, -1, 0]}, INT_KEYS, (7, -1, 0)),
}
X = np.arange(12, dtype=np.float32).reshape(4, 3)


def zipmap_model(kind, *more, outputs=("z",), opset=17, **options):
    attributes, type_proto, _ = LABELS[kind]
    nodes = [node("Neg", "x", "n"), node("ZipMap", "n", "z", "zip", **attributes, **ML), *more]
    return make_model(
        nodes,
        [value("x", ["N", 3])],
        [helper.make_value_info(name, type_proto) for name in outputs],
        domains={"ai.onnx.ml": 1, "mine": 1},
        opset=opset,
        **options,
    )


def run(proto):
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": X})


@pytest.mark.parametrize("kind", LABELS)
def test_zipmap_becomes_identity_with_its_labels(kind):
    model = load_onnx(zipmap_model(kind))
    (spec,) = model.outputs
    assert (spec.dtype, spec.shape) == (np.float32, (None, 3))
    *_, last = model.parse().graph.node
    assert (last.op_type, last.domain, last.name) == ("Identity", "", "zip")
    assert class_labels_of(last) == LABELS[kind][2]


@pytest.mark.parametrize("kind", LABELS)
def test_the_graph_is_restored_for_writing(kind):
    proto = zipmap_model(kind)
    written = with_weights(load_onnx(proto))
    onnx.checker.check_model(written)
    assert written.graph.output[0].type == proto.graph.output[0].type
    assert run(written) == run(proto)
    assert not written.graph.node[-1].metadata_props


def test_copies_of_maps_are_copies_of_the_matrix():
    model = load_onnx(zipmap_model("strings", node("Identity", "z", "w"), outputs=("z", "w")))
    assert [spec.shape for spec in model.outputs] == [(None, 3)] * 2
    assert all(n.op_type in ("Neg", "Identity") for n in model.parse().graph.node)


def test_maps_that_another_operator_reads_stay():
    proto = zipmap_model("strings", node("Best", "z", "b", domain="mine"))
    model = load_onnx(proto)
    assert model.outputs[0].kind == "seq(map(string,tensor(float)))"
    assert [n.op_type for n in model.parse().graph.node] == ["Neg", "ZipMap", "Best"]


def test_maps_that_only_a_body_reads_stay():
    body = helper.make_graph([node("Best", "z", "b", domain="mine")], "body", [], [value("b", [1])])
    choice = node("If", "c", "r", then_branch=body, else_branch=body)
    proto = zipmap_model("strings", choice)
    proto.graph.input.append(value("c", [], TensorProto.BOOL))
    proto.graph.output.append(value("r", [1]))
    assert "ZipMap" in [n.op_type for n in load_onnx(proto).parse().graph.node]


def test_an_optional_output_is_its_tensor():
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N"]))
    proto = make_model(
        [node("Optional", "x", "y")], [value("x", ["N"])], [helper.make_value_info("y", kind)]
    )
    model = load_onnx(proto)
    assert (model.outputs[0].dtype, model.outputs[0].shape) == (np.float32, ("N",))
    assert with_weights(model).graph.output[0].type == kind


def test_a_model_without_the_default_domain_gets_it():
    proto = zipmap_model("integers")
    del proto.graph.node[0]
    proto.graph.node[0].input[0] = "x"
    del proto.opset_import[0]
    model = load_onnx(proto)
    assert "" in model.opsets
    assert np.array_equal(run(model.parse())[0], X)


def test_metadata_of_the_file_does_not_pass_for_labels():
    proto = make_model([node("Identity", "x", "y")], [value("x", ["N"])], [value("y", ["N"])])
    proto.graph.node[0].metadata_props.add(key="dask_onnx.replaced", value='{"labels": ["a"]}')
    (identity,) = load_onnx(proto).parse().graph.node
    assert class_labels_of(identity) is None
