"""Names that are shortened to a width keep what tells most."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_onnx.core.lettering import shorten_label, shorten_middle, text_width


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.floats(20, 400))
def test_a_shortened_name_fits(name, room):
    assert text_width(shorten_middle(name, room, 12), 12) <= room
    assert text_width(shorten_label(name, room, 12), 12) <= room


def test_whole_components_are_left_out_of_the_middle():
    name = "model.layers.12.attention.query.MatMul"
    found = shorten_middle(name, text_width("model.…query.MatMul", 12), 12)
    assert found == "model.…query.MatMul"


@pytest.mark.parametrize(
    ("label", "characters", "expected"),
    [
        ("Conv_0..Relu_9", 14, "Conv_0..Relu_9"),
        ("MaxPool@model.9.m", 12, "MaxPool"),
        ("Conv@model.0..Act@model.4", 14, "Conv..Act"),
        ("a" * 30, 10, "aaa…aaaaaa"),
    ],
)
def test_the_place_in_the_model_goes_before_what_a_node_is(label, characters, expected):
    assert shorten_label(label, text_width("x" * characters, 12) + 0.01, 12) == expected
