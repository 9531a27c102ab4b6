"""Labels of stages, as Dask's dashboard groups, colours and shortens them."""

from __future__ import annotations

import dask.utils
import pytest
from builders import layers_model
from hypothesis import given
from hypothesis import strategies as st

import dask_onnx as dx
from dask_onnx.planning.stage_labels import (
    SHOWN_CHARACTERS,
    distinct_labels,
    identifier,
    label_of_names,
)

NAMES = st.lists(st.text(st.characters(codec="utf-8"), max_size=80), min_size=1, max_size=12)


@given(NAMES)
def test_labels_of_a_plan_differ_and_are_kept_by_dask(names):
    labels = distinct_labels([label_of_names([name]) for name in names])
    assert len(set(labels)) == len(names)
    for label in labels:
        assert label[0].isalpha() and "-" not in label
        assert dask.utils.key_split((f"{label}-{'0a' * 16}", 3)) == label


@given(NAMES)
def test_what_dask_shows_of_the_labels_of_a_plan_differs(names):
    labels = distinct_labels([label_of_names([name]) for name in names])
    shown = [label if len(label) <= SHOWN_CHARACTERS else label[:12] for label in labels]
    assert len(set(shown)) == len(names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/model.9/m/MaxPool", "model.9.m.MaxPool"),
        ("/a/very/deep/place/Conv_3", "deep.place.Conv_3"),
        ("/" + "long_folder_name_of_a_module_1/" * 3 + "MatMul", "MatMul"),
        ("x" * 30 + "y" * 30, "x" * 23 + "__" + "y" * 23),
        ("123", "n123"),
        ("///", "stage"),
    ],
)
def test_a_name_loses_whole_components_or_its_middle(name, expected):
    found = identifier(name)
    assert found == expected or found.endswith(f".{expected}")
    assert len(found) <= 49


def test_short_labels_that_differ_are_kept():
    assert distinct_labels(["Conv_0", "Relu_1"]) == ["Conv_0", "Relu_1"]
    assert distinct_labels(["one_model_with_a_long_name"]) == ["one_model_with_a_long_name"]


def test_long_labels_begin_with_the_number_and_what_the_node_is():
    found = distinct_labels(["model.9.m.MaxPool..model.10.Conv.3", *["a.b.Add_1"] * 10])
    assert found[0] == "s00.MaxPool@model.9.m..Conv.3@model.10"
    assert found[10] == "s10.Add_1@a.b"


def test_an_uncut_model_has_its_own_name():
    model = dx.load(layers_model([8] * 3), name="invoices")
    assert [stage.label for stage in model.plan().stages] == ["invoices"]
