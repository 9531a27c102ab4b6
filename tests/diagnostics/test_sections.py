"""Sections as text."""

from __future__ import annotations

from dask_onnx.core.errors import Suggestion
from dask_onnx.diagnostics.sections import Column, Note, Section, Table, render_text

TABLE = Table(
    (
        Column("#", ("0", "10")),
        Column("stage", ("a", "long name"), is_text=True),
        Column("", ("", "x"), is_text=True),
    )
)


def test_sections_are_separated_by_empty_lines_and_details_are_indented():
    first = Section("a", (Note("text", "label", ("one", "two")), Note("bare")))
    second = Section("b", (Note("", "memory", ("line",)),))
    assert render_text([first, second]) == (
        "label: text\n    one\n    two\nbare\n\nmemory\n    line"
    )


def test_tables_align_numbers_right_and_words_left_without_trailing_spaces():
    text = render_text([Section("t", title="stages", table=TABLE)])
    assert text.splitlines() == ["stages", " #  stage", " 0  a", "10  long name  x"]
    assert TABLE.rows == [("0", "a", ""), ("10", "long name", "x")]


def test_a_suggestion_is_phrased_by_the_caller():
    section = Section("a", (Note("a guess", suggestion=Suggestion("measure")),))
    assert render_text([section]) == "a guess; plan(measure=...) measures it"
    assert (
        render_text([section], lambda each: f"--{each.option}") == "a guess; --measure measures it"
    )
