"""Shapes of inputs apart from their rows."""

from __future__ import annotations

from dask_onnx.facts.row_shapes import row_scale, with_several_positions, without_rows

AXES = {"x": 0, "s": None}


def test_without_rows_ignores_a_common_number_of_rows():
    few, many = ({"x": (rows, 8), "s": (3,)} for rows in (2, 9))
    assert without_rows(few, AXES) == without_rows(many, AXES)
    assert without_rows(few, AXES) != without_rows({"x": (2, 7), "s": (3,)}, AXES)


def test_without_rows_separates_different_numbers_of_rows():
    axes = {"x": 0, "z": 0}
    equal, different = {"x": (4, 8), "z": (4, 8)}, {"x": (4, 8), "z": (2, 8)}
    assert without_rows(equal, axes) != without_rows(different, axes)


def test_row_scale_is_the_ratio_of_elements_and_at_least_one():
    planned = {"x": (1, 8)}
    assert row_scale({"x": (100, 32)}, planned, AXES) == 4.0
    assert row_scale({"x": (1, 4)}, planned, AXES) == 1.0


def test_with_several_positions_changes_axes_of_size_one_only():
    shapes = {"x": (1, 8), "z": (3, 8)}
    assert with_several_positions(shapes, {"x": 0, "z": 0}) == {"x": (7, 8), "z": (3, 8)}
