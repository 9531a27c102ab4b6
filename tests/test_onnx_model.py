from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
from builders import captured_model, dense_model, make_model, node, run_onnx, value, weights
from onnx import TensorProto, helper, numpy_helper

from dask_onnx.errors import ModelError
from dask_onnx.onnx_model import load_onnx
from dask_onnx.weights import read_range

X = np.random.default_rng(3).standard_normal((5, 8)).astype(np.float32)


def test_every_source_gives_the_same_token(tmp_path):
    model = dense_model()
    onnx.save(model, tmp_path / "m.onnx")
    tokens = {
        load_onnx(source).token
        for source in (
            tmp_path / "m.onnx",
            str(tmp_path / "m.onnx"),
            model.SerializeToString(),
            model,
        )
    }
    assert len(tokens) == 1


def test_an_onnx_ir_model_is_taken(tmp_path):
    ir_model = onnx_ir.from_proto(dense_model())
    assert [spec.name for spec in load_onnx(ir_model).inputs] == ["x"]


def test_the_token_changes_with_one_weight():
    model = dense_model()
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights(8, 32, seed=9), "W1"))
    assert load_onnx(model).token != load_onnx(changed).token


def test_a_model_from_a_file_keeps_no_weights(tmp_path):
    onnx.save(dense_model(hidden=4096), tmp_path / "m.onnx")
    loaded = load_onnx(tmp_path / "m.onnx")
    assert loaded.blobs == {}
    assert len(loaded.proto) < 2000
    assert loaded.parameters == 8 * 4096 + 4096 + 4096 * 4
    assert loaded.parameter_bytes == 4 * loaded.parameters


def test_loading_does_not_change_the_callers_model():
    model = dense_model()
    before = model.SerializeToString()
    load_onnx(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ({"value": numpy_helper.from_array(weights(3), "t")}, weights(3)),
        ({"value_float": 2.5}, np.float32(2.5)),
        ({"value_floats": [1.0, 2.0]}, np.array([1, 2], np.float32)),
        ({"value_int": 7}, np.int64(7)),
        ({"value_ints": [1, 2, 3]}, np.array([1, 2, 3])),
        ({"value_string": "a"}, np.array("a", object)),
        ({"value_strings": ["a", "b"]}, np.array(["a", "b"], object)),
    ],
)
def test_constants_become_initializers(attribute, expected):
    constant = helper.make_node("Constant", [], ["c"], **attribute)
    model = make_model([constant, node("Identity", "c", "y")], [], [value("y", None)])
    proto = load_onnx(model).parse()
    assert [n.op_type for n in proto.graph.node] == ["Identity"]
    (tensor,) = proto.graph.initializer
    found = numpy_helper.to_array(tensor)
    np.testing.assert_array_equal(
        found, expected if found.dtype != object else expected.astype(object)
    )


def test_weights_inside_constant_nodes_and_bodies_leave_the_proto():
    loaded = load_onnx(captured_model())
    assert len(loaded.proto) < 3000
    assert sum(map(len, loaded.blobs.values())) == 2048 * 4 * 4


def test_unnamed_nodes_are_named_by_their_place_in_the_file():
    constant = helper.make_node("Constant", [], ["c"], value_float=1.0)
    nodes = [constant, node("Add", "x c", "h"), node("Relu", "h", "y")]
    loaded = load_onnx(make_model(nodes, [value("x", [1])], [value("y", [1])]))
    assert [n.name for n in loaded.parse().graph.node] == ["Add_1", "Relu_2"]


def test_nodes_out_of_order_are_sorted():
    nodes = [node("Relu", "h", "y", "second"), node("Neg", "x", "h", "first")]
    loaded = load_onnx(make_model(nodes, [value("x", [1])], [value("y", [1])]))
    assert [n.name for n in loaded.parse().graph.node] == ["first", "second"]


def test_a_cycle_is_an_error():
    nodes = [node("Add", "x b", "a"), node("Neg", "a", "b")]
    with pytest.raises(ModelError, match="cycle"):
        load_onnx(make_model(nodes, [value("x", [1])], [value("b", [1])]))


def test_initializers_that_are_inputs_are_no_inputs():
    model = make_model(
        [node("Mul", "x w", "y")],
        [value("x", [3]), value("w", [3])],
        [value("y", [3])],
        {"w": weights(3)},
        ir_version=3,
        opset=8,
    )
    loaded = load_onnx(model)
    assert [spec.name for spec in loaded.inputs] == ["x"]
    assert loaded.parse().ir_version >= 4


def test_specs_say_what_is_open():
    model = make_model(
        [node("Identity", "x", "y")],
        [value("x", ["N", -1, "?", 3], TensorProto.STRING)],
        [value("y", None, TensorProto.STRING)],
    )
    (spec,) = load_onnx(model).inputs
    assert spec.shape == ("N", None, None, 3)
    assert str(spec) == "x: string (N, ?, ?, 3)"


class TestExternalData:
    @pytest.fixture
    def path(self, tmp_path):
        onnx.save_model(
            dense_model(hidden=512),
            tmp_path / "m.onnx",
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=0,
        )
        return tmp_path / "m.onnx"

    def test_large_tensors_are_not_read(self, path):
        loaded = load_onnx(path)
        assert loaded.blobs == {}
        assert sum(place.length for place in loaded.ranges.values()) == loaded.parameter_bytes

    def test_ranges_give_the_bytes_of_the_weights(self, path):
        loaded = load_onnx(path)
        found = {read_range(place) for place in loaded.ranges.values()}
        assert weights(8, 512).tobytes() in found

    def test_a_file_that_changed_is_refused(self, path):
        place = next(iter(load_onnx(path).ranges.values()))
        with (path.parent / "weights.bin").open("ab") as file:
            file.write(b"x")
        with pytest.raises(ModelError, match="has changed"):
            read_range(place)

    def test_a_missing_file_is_named(self, path):
        (path.parent / "weights.bin").unlink()
        with pytest.raises(ModelError, match=r"weights\.bin, which does not exist"):
            load_onnx(path)

    def test_a_short_file_is_refused_with_the_numbers(self, path):
        (path.parent / "weights.bin").write_bytes(b"1234")
        with pytest.raises(ModelError, match="which has 4"):
            load_onnx(path)

    def test_bytes_cannot_name_external_data(self, path):
        with pytest.raises(ModelError, match="no folder"):
            load_onnx(path.read_bytes())

    def test_a_location_outside_the_folder_is_refused(self, path):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../weights.bin"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match="leaves the model's folder"):
            load_onnx(path)


def test_what_is_no_model_is_refused_with_the_reason(tmp_path):
    data = dense_model().SerializeToString()
    (tmp_path / "short.onnx").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "empty.onnx").write_bytes(b"")
    reasons = {
        "short.onnx": "cut short",
        "text.onnx": "not an ONNX model",
        "empty.onnx": "not an ONNX model",
        ".": "is a folder",
        "missing.onnx": "does not exist",
    }
    for name, reason in reasons.items():
        with pytest.raises(ModelError, match=reason) as caught:
            load_onnx(tmp_path / name)
        assert caught.value.next_step
    with pytest.raises(ModelError, match=r"empty\.onnx, short\.onnx, text\.onnx"):
        load_onnx(tmp_path / "missing.onnx")
    with pytest.raises(ModelError, match="from int"):
        load_onnx(3)


def test_normalising_does_not_change_results():
    model = dense_model()
    loaded = load_onnx(model)
    proto = loaded.parse()
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            original = next(t for t in model.graph.initializer if t.name == tensor.name)
            tensor.CopyFrom(original)
    np.testing.assert_array_equal(run_onnx(proto, {"x": X})[0], run_onnx(model, {"x": X})[0])
