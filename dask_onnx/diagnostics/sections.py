"""Sections: notes and tables as data, which a terminal and a page render in their own way.

Their texts have names of models in them, so that each is made printable, and one line, here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dask_onnx.core.errors import Suggestion
from dask_onnx.core.formatting import printable

_INDENT = " " * 4


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    head: str
    cells: tuple[str, ...]
    """Text of each row."""
    is_text: bool = False
    """Words, which are aligned left; numbers are aligned right."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", tuple(map(printable, self.cells)))


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of the same number of rows."""

    columns: tuple[Column, ...]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Cells of each row, without the heads."""
        return list(zip(*(column.cells for column in self.columns), strict=True))


@dataclass(frozen=True, slots=True)
class Note:
    """A statement, and what belongs to it."""

    text: str
    """The statement; empty where its details are all there is to say."""
    label: str = ""
    """Subject of the statement, such as "critical path"; empty where the text names it."""
    details: tuple[str, ...] = ()
    """Lines in a fixed-width font, such as the timetable of a worker."""
    suggestion: Suggestion | None = None
    """Option of `Model.plan` that makes the statement more precise."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", printable(self.text))
        object.__setattr__(self, "details", tuple(map(printable, self.details)))


@dataclass(frozen=True, slots=True)
class Section:
    """Part of a report, with an identifier by which a page can arrange it."""

    name: str
    """Identifier, such as "stages"."""
    notes: tuple[Note, ...] = ()
    title: str = ""
    """Title of the table."""
    table: Table | None = None


def in_python(suggestion: Suggestion) -> str:
    """Return the call of `Model.plan` that takes a suggested option."""
    value = "..." if suggestion.value is None else suggestion.value
    return f"plan({suggestion.option}={value})"


def render_text(
    sections: Iterable[Section], phrase: Callable[[Suggestion], str] = in_python
) -> str:
    """Return sections as plain text, separated by empty lines.

    Parameters
    ----------
    sections : iterable of Section
    phrase : function of a Suggestion
        Returns how the caller's surface takes the option: by default as a call in Python.
    """
    return "\n\n".join("\n".join(_lines(section, phrase)) for section in sections)


def _lines(section: Section, phrase: Callable[[Suggestion], str]) -> Iterator[str]:
    for note in section.notes:
        yield ": ".join(filter(None, (note.label, sentence(note, phrase))))
        yield from (f"{_INDENT}{line}" for line in note.details)
    if section.table is not None:
        if section.title:
            yield section.title
        yield from _table_lines(section.table.columns)


def sentence(note: Note, phrase: Callable[[Suggestion], str] = in_python) -> str:
    """Return the text of a note without its label, followed by its suggestion if it has one."""
    if note.suggestion is None:
        return note.text
    return f"{note.text}; {phrase(note.suggestion)} measures it"


def _table_lines(columns: Sequence[Column]) -> Iterator[str]:
    widths = [max(map(len, (column.head, *column.cells))) for column in columns]
    for row in zip(*((column.head, *column.cells) for column in columns), strict=True):
        cells = (
            f"{cell:<{width}}" if column.is_text else f"{cell:>{width}}"
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        yield "  ".join(cells).rstrip()
