"""Opened batches are proven, and compared with the graph that they were made from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from builders import dense_model, make_model, node, value, weights
from frozen_models import ints, run
from onnx import TensorProto

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.freeing import LIMIT, Freed, check_freed, differences, free_batch
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.opening.opener import Blocked, Opened, open_batch
from dask_onnx.analysis.sample_inputs import sample_inputs
from dask_onnx.core.errors import ModelError
from dask_onnx.modelio import weights as weights_module
from dask_onnx.modelio.onnx_model import load_onnx

INT64, BOOL = TensorProto.INT64, TensorProto.BOOL


def test_a_statistic_over_all_rows_blocks_a_graph_of_one_row_too():
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z", "quantise"),
        node("DequantizeLinear", "q s z", "y"),
    ]
    model = make_model(nodes, [value("x", [1, 3])], [value("y", [1, 3])])
    found = free_batch(load_onnx(model))
    assert isinstance(found, Blocked)
    assert found.node == "quantise"


def table_for_all_rows(rows, differ=False):
    """Return a model with a constant of over 1 KiB per row, which is stored outside the proto."""
    table = np.repeat(weights(1, 600), rows, 0)
    table[-1] += differ
    return make_model(
        [node("Add", "x table", "y", "table")],
        [value("x", [rows, 600])],
        [value("y", [rows, 600])],
        {"table": table},
    )


@pytest.fixture
def no_reading(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(weights_module, "read_ranges", refuse)


def test_weights_are_neither_read_nor_moved(tmp_path, no_reading):
    model = dense_model(4, hidden=600)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=100)
    original = load_onnx(tmp_path / "m.onnx")
    opened = open_batch(original)
    assert isinstance(opened, Opened)
    assert opened.model.blob_keys == original.blob_keys
    assert opened.model.places == original.places
    assert opened.model.source is None
    assert opened.model.token != original.token
    assert original.inputs[0].shape == (4, 8)


def test_a_large_constant_for_all_rows_is_read_only_by_free_batch(tmp_path):
    onnx.save_model(table_for_all_rows(4), tmp_path / "m.onnx", save_as_external_data=True)
    original = load_onnx(tmp_path / "m.onnx")
    unread = open_batch(original)
    assert isinstance(unread, Blocked)
    assert (unread.node, unread.kind) == ("table", Kind.OPAQUE)
    freed = free_batch(original)
    assert isinstance(freed, Freed)
    assert freed.model.blob_keys == original.blob_keys
    assert max(each.relative for each in differences(original, freed, run)) == 0


def test_a_large_constant_whose_rows_differ_blocks(tmp_path):
    model = table_for_all_rows(4, differ=True)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True)
    found = free_batch(load_onnx(tmp_path / "m.onnx"))
    assert isinstance(found, Blocked)
    assert (found.node, found.kind) == ("table", Kind.LENGTH)


def test_a_graph_with_other_outputs_is_refused():
    original = load_onnx(dense_model(4))
    freed = free_batch(original)
    other = make_model(
        [node("MatMul", "x W", "y")],
        [value("x", ["rows", 8])],
        [value("y", ["rows", 4])],
        {"W": weights(8, 4)},
    )
    wrong = replace(freed, opened=replace(freed.opened, model=load_onnx(other)))
    with pytest.raises(ModelError) as raised:
        check_freed(original, wrong, run)
    assert raised.value.input == "y"
    assert raised.value.numbers["relative_difference"] > raised.value.numbers["limit"] == LIMIT
    assert raised.value.numbers["rows"] in (4, 9)
    assert max(each.relative for each in check_freed(original, freed, run)) < 1e-6


def test_differences_of_integers_are_shares_of_elements():
    model = make_model(
        [node("ArgMax", "x", "y", axis=1), node("Relu", "x", "z")],
        [value("x", [2, 5])],
        [value("y", [2, 1], INT64), value("z", [2, 5])],
    )
    original = load_onnx(model)
    freed = free_batch(original)

    def other(model, feeds):
        found = run(model, feeds)
        if model is freed.model:
            found["y"] = found["y"] + (np.arange(len(found["y"])) == 0)[:, None]
        return found

    found = {(each.output, each.rows): each for each in differences(original, freed, other)}
    assert found["y", 2].relative == pytest.approx(1 / 2)
    assert found["y", 5].relative == pytest.approx(1 / 5)
    assert found["z", 5].is_exact


def test_sample_inputs_stay_within_lookup_tables():
    nodes = [
        node("Unsqueeze", "ids one", "u"),
        node("Gather", "table u", "e"),
        node("Cast", "coded", "c", to=INT64),
        node("Gather", "small c", "f"),
        node("Equal", "kind classes", "k"),
    ]
    inputs = [value("ids", [2, 3], INT64), value("coded", [2, 3]), value("kind", [2, 1], INT64)]
    inputs += [value("mask", [2, 8], INT64), value("flag", [2, 8], BOOL), value("x", [2, 3])]
    inputs += [value("picture", [2, 50], TensorProto.UINT8), value("n", [], INT64)]
    nodes += [
        node("Identity", name, f"{name}_out") for name in ("mask", "flag", "x", "picture", "n")
    ]
    outputs = [value("e", None), value("f", None), value("k", None, BOOL)]
    outputs += [value("mask_out", [2, 8], INT64), value("flag_out", [2, 8], BOOL)]
    outputs += [value("x_out", [2, 3]), value("picture_out", [2, 50], TensorProto.UINT8)]
    outputs.append(value("n_out", [], INT64))
    constants = {"one": ints(1), "table": weights(40, 2), "small": weights(3, 2)}
    constants["classes"] = np.arange(7)
    facts = GraphFacts(load_onnx(make_model(nodes, inputs, outputs, constants)))
    shapes = {spec.name: spec.shape for spec in facts.model.inputs}
    drawn = [sample_inputs(facts, shapes, np.random.default_rng(seed)) for seed in range(30)]
    together = {name: np.stack([each[name] for each in drawn]) for name in shapes}
    for spec in facts.model.inputs:
        assert together[spec.name].dtype == spec.dtype
    assert 20 < together["ids"].max() < 40
    assert set(np.unique(together["coded"])) == {0.0, 1.0, 2.0}
    assert 3 < together["kind"].max() < 7
    assert (together["mask"][..., 0] == 1).all() and not together["mask"][..., -1].all()
    assert (np.diff(together["flag"].astype(int)) <= 0).all()
    assert together["picture"].max() > 200
    assert (together["n"] == 1).all()


@pytest.mark.real
def test_an_image_classifier_for_one_image_takes_many(asset):
    model = onnx.load(asset("cls.onnx"))
    for place, size in enumerate((1, 3, 48, 192)):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = size
    original = load_onnx(model)
    freed = free_batch(original)
    assert isinstance(freed, Freed), str(freed)
    assert max(each.relative for each in check_freed(original, freed, run)) < 1e-5
