"""Cells of text files: their types as a sample shows them, and their conversion by exact rules.

Numbers are read exactly: integers as integers of 64 bits, others as the nearest float64. A column
that is only kept is a number only if its texts are the way in which that number is written: 01234,
+5 and 1e5 stay texts. Missing are the usual marks in columns of numbers, and in columns of text
nothing but what the caller names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MISSING = frozenset(
    (
        "",
        *"#N/A #NA -1.#IND -1.#QNAN -NaN -nan 1.#IND 1.#QNAN <NA> N/A NA NULL NaN None n/a nan "
        "null".split(),
        "#N/A N/A",
    )
)
"""Texts that mean a missing value in a column of numbers; the same as for `pandas.read_csv`."""
_BOOLEANS = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_INTEGER = r"^[+-]?[0-9]+$"
_NUMBER = (
    r"^[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[iI]nf|INF|[iI]nfinity|INFINITY|"
    r"[nN]a[nN]|NAN)$"
)
_WRITTEN_INTEGER = r"^(0|-?[1-9][0-9]*)$"
_WRITTEN_NUMBER = (
    # Integers of up to 15 digits, which a float64 holds exactly, and numbers with a point.
    r"^(0|-?[1-9][0-9]{0,14})$|^-?(0|[1-9][0-9]*)\.[0-9]+([eE][-+]?[0-9]+)?$|^-?inf$"
)


@dataclass(frozen=True, slots=True)
class CellRules:
    """Options of the caller about the cells of a text file."""

    missing: tuple[str, ...] = ()
    """Texts that mean a missing value in all columns, besides the usual ones of numbers."""
    missing_by_column: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The same for single columns."""
    decimal: str = "."
    """Character before the decimals."""

    def marks(self, column: str, *, is_text: bool) -> list[str]:
        """Return the texts that mean a missing value in a column."""
        named = {*self.missing, *self.missing_by_column.get(column, ())}
        return sorted(named if is_text else named | MISSING)


class CellError(ValueError):
    """A text is no value of the type of its column."""

    def __init__(self, column: str, text: str, kind: str) -> None:
        super().__init__(column, text, kind)
        self.column, self.text, self.kind = column, text, kind


def infer_type(texts: pa.Array, marks: Sequence[str], *, exact: bool, decimal: str) -> pa.DataType:
    """Return the type of a column, as the texts of a sample show it.

    Parameters
    ----------
    texts : pyarrow array of string
    marks : sequence of str
        Texts that mean a missing value.
    exact : bool
        True if the texts must follow from the numbers, since they are written again.
    decimal : str
        Character before the decimals.

    Returns
    -------
    pyarrow.DataType
        bool, int64, uint64, float64 or string. Without any value float64, or string if `exact`.
    """
    values = texts if exact else pc.utf8_trim_whitespace(texts)
    values = values.filter(pc.invert(pc.is_in(values, value_set=pa.array(marks, pa.string()))))
    values = pc.drop_null(values)
    if not len(values):
        return pa.string() if exact else pa.float64()
    if _all(pc.is_in(values, value_set=pa.array(list(_BOOLEANS)))):
        return pa.bool_()
    if _all_match(values, _WRITTEN_INTEGER if exact else _INTEGER):
        for kind in (pa.int64(), pa.uint64()):
            try:
                _without_plus(values).cast(kind)
            except pa.ArrowInvalid:
                continue
            return kind
        return pa.string() if exact else pa.float64()
    if decimal != ".":
        values = pc.replace_substring(values, decimal, ".")
    if _all_match(values, _WRITTEN_NUMBER if exact else _NUMBER):
        return pa.float64()
    return pa.string()


def odd_cell(texts: pa.Array, rules: CellRules, column: str) -> str | None:
    """Return the first text that is no number where at least half of the others are numbers.

    Parameters
    ----------
    texts : pyarrow array of string
        Cells of a sample.
    rules : CellRules
    column : str
        Name of the column.

    Returns
    -------
    str or None
        None if all are numbers or missing, or most are texts.
    """
    marks = rules.marks(column, is_text=False)
    values = pc.utf8_trim_whitespace(texts)
    values = values.filter(pc.invert(pc.is_in(values, value_set=pa.array(marks, pa.string()))))
    if rules.decimal != ".":
        values = pc.replace_substring(values, rules.decimal, ".")
    is_number = pc.match_substring_regex(values, _NUMBER)
    numbers = pc.sum(is_number).as_py() or 0
    if numbers == len(values) or 2 * numbers < len(values):
        return None
    return str(values.filter(pc.invert(is_number))[0].as_py())


def convert_cells(
    texts: pa.ChunkedArray, column: str, kind: pa.DataType, rules: CellRules, *, exact: bool
) -> pa.ChunkedArray:
    """Return the values of a column.

    Parameters
    ----------
    texts : pyarrow chunked array of string
    column : str
        Name of the column.
    kind : pyarrow.DataType
        Type of its values.
    rules : CellRules
    exact : bool
        True if a number must be written as the text is, as for `infer_type`.

    Raises
    ------
    CellError
        A text is no value of that type.
    """
    is_text = pa.types.is_string(kind)
    values = texts if is_text or exact else pc.utf8_trim_whitespace(texts)
    marks = rules.marks(column, is_text=is_text)
    if marks:
        is_missing = pc.is_in(values, value_set=pa.array(marks, pa.string()))
        values = pc.if_else(is_missing, pa.scalar(None, pa.string()), values)
    if is_text:
        return values
    if rules.decimal != "." and not pa.types.is_integer(kind):
        values = _with_points(values, column, kind, rules.decimal)
    _check_pattern(values, column, kind, exact=exact)
    if pa.types.is_boolean(kind):
        values = pc.index_in(values, value_set=pa.array(list(_BOOLEANS)))
        found = pa.array(list(_BOOLEANS.values()))
        return pa.chunked_array([found.take(chunk) for chunk in values.chunks], pa.bool_())
    try:
        return (_without_plus(values) if pa.types.is_integer(kind) else values).cast(kind)
    except pa.ArrowInvalid:
        # Beyond the range of an integer, or no time.
        raise CellError(column, _first_failure(values, kind), str(kind)) from None


def _with_points(
    values: pa.ChunkedArray, column: str, kind: pa.DataType, decimal: str
) -> pa.ChunkedArray:
    dotted = pc.fill_null(pc.match_substring(values, "."), False)
    if pa.types.is_floating(kind) and pc.any(dotted).as_py():
        raise CellError(column, pc.filter(values, dotted)[0].as_py(), str(kind))
    return pc.replace_substring(values, decimal, ".")


def _check_pattern(values: pa.ChunkedArray, column: str, kind: pa.DataType, *, exact: bool) -> None:
    if pa.types.is_boolean(kind):
        fits = pc.is_in(values, value_set=pa.array(list(_BOOLEANS)))
        fits = pc.or_(fits, pc.is_null(values))
    elif pa.types.is_integer(kind):
        fits = pc.match_substring_regex(values, _WRITTEN_INTEGER if exact else _INTEGER)
    elif pa.types.is_floating(kind):
        fits = pc.match_substring_regex(values, _WRITTEN_NUMBER if exact else _NUMBER)
    else:
        return
    if not _all(fits):
        bad = pc.invert(pc.fill_null(fits, True))
        raise CellError(column, pc.filter(values, bad)[0].as_py(), str(kind))


def _first_failure(values: pa.ChunkedArray, kind: pa.DataType) -> str:
    for value in _without_plus(values) if pa.types.is_integer(kind) else values:
        try:
            value.cast(kind)
        except pa.ArrowInvalid:
            return str(value.as_py())
    return ""


def _without_plus(values: Any) -> Any:
    return pc.replace_substring_regex(values, r"^\+", "")


def _all(found: Any) -> bool:
    return bool(pc.all(pc.fill_null(found, True), min_count=0).as_py())


def _all_match(values: Any, pattern: str) -> bool:
    return _all(pc.match_substring_regex(values, pattern))
