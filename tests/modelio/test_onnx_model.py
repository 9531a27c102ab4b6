"""Loading: normal form, separation of weights, and their locations in files."""

from __future__ import annotations

import socket

import fsspec
import numpy as np
import onnx
import onnx_ir
import pytest
from builders import captured_model, dense_model, make_model, node, run_onnx, value, weights
from onnx import TensorProto, helper, numpy_helper

import dask_onnx as dx
from dask_onnx.core.errors import ModelError
from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.modelio.weights import PACK_BYTES

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


def test_an_onnx_ir_model_is_loaded():
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


def test_inputs_with_an_initializer_are_not_inputs():
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


def test_unknown_sizes_are_none_or_names_in_specs():
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
        assert sum(place.length for place in loaded.places.values()) == loaded.parameter_bytes

    def test_ranges_give_the_bytes_of_the_weights(self, path):
        loaded = load_onnx(path)
        found = {place.read() for place in loaded.places.values()}
        assert weights(8, 512).tobytes() in found

    def test_a_file_that_changed_is_refused(self, path):
        place = next(iter(load_onnx(path).places.values()))
        with (path.parent / "weights.bin").open("ab") as file:
            file.write(b"x")
        with pytest.raises(ModelError) as caught:
            place.read()
        assert caught.value.numbers == {"expected_bytes": place.file.size}

    def test_a_missing_file_is_named(self, path):
        (path.parent / "weights.bin").unlink()
        with pytest.raises(ModelError) as caught:
            load_onnx(path)
        assert caught.value.input in {"W1", "b1", "W2"}
        assert str(path.parent / "weights.bin") in caught.value.reason

    def test_a_short_file_is_refused_with_the_numbers(self, path):
        (path.parent / "weights.bin").write_bytes(b"1234")
        with pytest.raises(ModelError) as caught:
            load_onnx(path)
        assert caught.value.numbers["file_bytes"] == 4

    def test_bytes_cannot_refer_to_external_data(self, path):
        with pytest.raises(ModelError, match="no folder") as caught:
            load_onnx(path.read_bytes())
        assert caught.value.input in {"W1", "b1", "W2"}

    def test_a_location_outside_the_folder_is_refused(self, path):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../weights.bin"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match="outside the model's folder"):
            load_onnx(path)


def test_sources_that_are_not_models_are_refused_with_the_reason(tmp_path):
    data = dense_model().SerializeToString()
    (tmp_path / "short.onnx").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "empty.onnx").write_bytes(b"")
    reasons = {
        "short.onnx": "truncated",
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


class TestPlaces:
    """Locations of weights in files, so that those of one stage can be read alone."""

    @pytest.fixture
    def path(self, tmp_path):
        onnx.save(dense_model(hidden=40_000), tmp_path / "m.onnx")
        return tmp_path / "m.onnx"

    def test_the_place_of_each_blob_of_a_file_gives_its_bytes(self, path):
        held = load_onnx(path, keep_weights=True)
        loaded = load_onnx(path)
        assert loaded.blobs == {}
        assert set(loaded.places) == set(held.blobs)
        assert all(loaded.places[key].read() == data for key, data in held.blobs.items())

    def test_weights_in_constants_and_bodies_have_places(self, tmp_path):
        big = weights(64, 64)
        constant = helper.make_node(
            "Constant", [], ["w"], value=numpy_helper.from_array(big, "anything")
        )
        body = helper.make_graph(
            [node("MatMul", "h v", "t")],
            "body",
            [],
            [value("t", ["N", 64])],
            [numpy_helper.from_array(big * 2, "v")],
        )
        other = helper.make_graph([node("Neg", "h", "e")], "other", [], [value("e", ["N", 64])])
        model = make_model(
            [
                constant,
                node("MatMul", "x w", "h"),
                helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=other),
            ],
            [value("x", ["N", 64]), value("flag", [], TensorProto.BOOL)],
            [value("y", ["N", 64])],
        )
        onnx.save(model, tmp_path / "m.onnx")
        (place,) = load_onnx(tmp_path / "m.onnx").places.values()
        content = place.read()
        assert big.tobytes() in content and (big * 2).tobytes() in content

    def test_the_token_does_not_depend_on_the_location_of_the_weights(self, path):
        assert load_onnx(path).token == load_onnx(onnx.load(path)).token

    def test_weights_in_typed_fields_are_kept_in_memory(self, tmp_path):
        model = dense_model(hidden=400)
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                helper.make_tensor(tensor.name, TensorProto.FLOAT, array.shape, array.ravel())
            )
        onnx.save(model, tmp_path / "m.onnx")
        loaded = load_onnx(tmp_path / "m.onnx")
        assert loaded.places == {}
        assert loaded.blob_keys == tuple(loaded.blobs)

    def test_a_deleted_file_can_still_be_read(self, path):
        loaded = load_onnx(path)
        held = load_onnx(path, keep_weights=True).blobs
        path.unlink()
        assert {key: loaded.blob_bytes(key) for key in loaded.blob_keys} == held

    def test_an_overwritten_file_is_refused(self, path):
        loaded = load_onnx(path)
        path.write_bytes(b"something else")
        with pytest.raises(ModelError) as caught:
            loaded.blob_bytes(loaded.blob_keys[0])
        assert set(caught.value.numbers) == {"expected_bytes"}

    def test_packs_of_small_weights_have_a_bounded_size(self):
        count, size = 48, 240_000
        names = [f"w{i}" for i in range(count)]
        model = make_model(
            [node("Sum", " ".join(["x", *names]), "y")],
            [value("x", [size])],
            [value("y", [size])],
            {name: weights(size, seed=i) for i, name in enumerate(names)},
        )
        sizes = [len(blob) for blob in load_onnx(model).blobs.values()]
        assert sum(sizes) >= count * size * 4
        assert len(sizes) > 1 and max(sizes) <= PACK_BYTES + size * 4

    def test_a_model_at_a_url_is_read_through_fsspec(self, path):
        remote = fsspec.filesystem("memory")
        remote.pipe("/models/m.onnx", path.read_bytes())
        loaded = load_onnx("memory://models/m.onnx")
        assert loaded.token == load_onnx(path).token
        assert loaded.blob_bytes(loaded.blob_keys[0]) == load_onnx(path).blob_bytes(
            loaded.blob_keys[0]
        )
        remote.rm("/models/m.onnx")
        with pytest.raises(ModelError, match=r"memory://models/m\.onnx cannot be read"):
            load_onnx("memory://models/m.onnx")

    def test_external_data_of_a_url_stays_below_its_folder(self, tmp_path):
        model = dense_model(hidden=400)
        onnx.save_model(
            model, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0
        )
        remote = fsspec.filesystem("memory")
        data = (tmp_path / "m.onnx").read_bytes()
        remote.pipe("/far/m.onnx", data)
        remote.pipe("/far/w", (tmp_path / "w").read_bytes())
        loaded = load_onnx("memory://far/m.onnx")
        assert weights(8, 400).tobytes() in {place.read() for place in loaded.places.values()}
        proto = onnx.ModelProto.FromString(data)
        for tensor in proto.graph.initializer:
            tensor.external_data[0].value = "../w"
        remote.pipe("/far/bad.onnx", proto.SerializeToString())
        with pytest.raises(ModelError, match="outside the model's folder"):
            load_onnx("memory://far/bad.onnx")


def test_a_model_at_a_url_that_does_not_answer_says_why():
    with socket.socket() as taken:  # bound, and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/m.onnx"
        for options in ({}, {"untrusted": True}):
            with pytest.raises(dx.ModelError) as caught:
                dx.load(url, **options)
            assert "Connect" in caught.value.reason


def test_an_empty_path_is_told():
    for options in ({}, {"untrusted": True}):
        with pytest.raises(dx.ModelError, match="empty"):
            dx.load("", **options)
