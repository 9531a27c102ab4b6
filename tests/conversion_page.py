"""Write CONVERSIONS.md from the table of conversions: `python tests/conversion_page.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dask_onnx.core.conversions import (
    COMPLEX,
    FLOATS,
    INTEGERS,
    SOURCES,
    TARGETS,
    UNSIGNED,
    conversion,
)

PAGE = Path(__file__).parents[1] / "CONVERSIONS.md"

SIGNS = {"exact": "=", "by value": "v", "rounded": "r", "checked": "c", "refused": "."}
"""Sign of each way in the table."""

NAMES = {
    "longdouble": "numpy's `longdouble`",
    "clongdouble": "numpy's `clongdouble`",
    "decimal": "`Decimal`, `Fraction`, Arrow's decimals",
    "text": "`str`, numpy `U` and `StringDType`, pandas' and Arrow's strings",
    "bytes": "`bytes`, numpy `S`, Arrow's binary",
    "datetime": "points in time of numpy, pandas, Arrow and Python",
    "date": "dates of Arrow and Python",
    "duration": "durations of numpy, pandas, Arrow and Python",
    "time": "times of day of Arrow and Python",
    "missing": "`None`, `NA`, `NaT`, masked places, Arrow's null",
    "object": "Python's objects",
    "list": "lists in one element",
    "structured": "structures, structs, maps",
    "interval": "intervals",
    "period": "periods",
    "unknown": "anything else",
}
"""Names of sources that are not those of ONNX's types."""

HEAD = """# Conversions

Values of many types come in, and a model's input has one ONNX type. This table says what becomes of
them. It holds for every kind of collection: numpy arrays and scalars, Python's lists, `dask.array`,
xarray, pandas and Dask tables, bags, `Delayed`, and files on the command line. Values in memory are
converted before any work starts, those of lazy collections in their tasks.

This page is made from [dask_onnx/core/conversions.py](dask_onnx/core/conversions.py) by
`make conversions`; a test compares the two, and others hold each cell against exact arithmetic.

| sign | meaning |
| --- | --- |
| `=` | exact: the value is of that type. Arrays are not copied, nor their values looked at. |
| `v` | by value: every value of the source type exists in the target type. |
| `r` | rounded to the nearest value. A finite number beyond the range is refused. |
| `c` | checked: a value that exists in the target is taken, any other is refused. |
| `.` | refused by its type, before any work where the type is known. |
"""

RULES = """
## Rules

**Numbers into floating-point inputs** are rounded to the nearest value of the input's type,
integers and decimals as well as floats: pandas and Python compute in 64 bits, most models in 32. A
finite number must stay finite; infinities must exist in the type.

**Numbers into integers** are taken if they are whole and in range, from floats too: tables make
floats of integers when a value is missing. A bool counts as an integer from 0 to 1. Nothing is
rounded to an integer.

**Complex numbers** go into complex inputs only, even if their imaginary part is zero.

**Text** goes into string inputs only, and nothing else does: no number is written as text, and no
text is read as a number. Bytes are decoded as UTF-8; what is not UTF-8 is refused, with its place.
Dask makes strings of columns of objects unless its option `dataframe.convert-string` is off.

**Times** go into int64 only, in nanoseconds whatever their unit is: points in time since 1970 in
UTC (without a zone they are in UTC), dates at midnight, durations, times of day since midnight.
They reach from 1677 to 2262; a value beyond, or finer than a nanosecond, is refused, and so is a
duration in months or years.

**Missing values** (`None`, NaN, `NA`, `NaT`, masked places, nulls) become NaN in inputs that have
a NaN, and are refused by all others: integers, booleans, strings, `float4` and `float6`. What lies
under a mask is never read. Masks of whole rows come back: a masked array of numpy or Dask gives
masked arrays, in which a row is masked if all of that row is masked in an input. Other masked
places are the NaN that the model makes of one, in a `Delayed` and in bags too.

**Tables of polars and pyarrow**, and others that export Arrow's data, are taken as Arrow's columns
are, and results are tables of the same library. A query that is not computed yet (`LazyFrame`,
`Dataset`) is refused.

**Objects** are converted one by one, each by its own type. Categories, dictionaries and sparse
columns are converted as their values are; only categories that occur have to fit.

**Lists** in a column feed an input of rank 2, and their elements are converted as a column is.
Sequences and optionals are converted element by element.

**Refused values.** In a table or a bag they make a bad row (`on_error=`, `predict_checked`). In an
array they are an error that gives their number (`numbers["bad_values"]`) and the index of the
first. A type that is refused is an error before any work, whatever `on_error` says; in a `Delayed`
or a bag of arrays the type is first known in the task.

**Columns by default.** One input takes all columns of numbers (of text, if it takes text) in their
order. Columns that it can never take are left out. A column that it might take, but that does not
say so by its dtype, is an error until `columns=` names the columns: objects, categories and
dictionaries of numbers, lists beside numbers, times beside integers for an int64 input. Two
columns of one name are an error where either is needed.

**Rows of a bag** may have keys that the model has no input for; they are ignored, as other columns
of a table are. A key that is an optional input of the model is an error, since it has one value
for all rows. Where an input takes one value a row, it need not
be in a list: a record of numbers and texts is a row.

## Refused types
"""


def page() -> str:
    """Return the text of CONVERSIONS.md."""
    groups = [
        ("Into booleans and integers", ("bool", *INTEGERS, *UNSIGNED)),
        ("Into floating-point numbers", FLOATS),
        ("Into complex numbers and strings", (*COMPLEX, "string")),
    ]
    assert sum(len(targets) for _, targets in groups) == len(TARGETS)
    lines = [HEAD]
    for title, targets in groups:
        lines += [f"## {title}", "", *_table(targets), ""]
    return "\n".join(lines) + RULES + "\n".join(_reasons()) + "\n"


def _table(targets: Sequence[str]) -> Iterator[str]:
    yield "| from | " + " | ".join(f"`{target}`" for target in targets) + " |"
    yield "| --- |" + " :-: |" * len(targets)
    for source in SOURCES:
        signs = (f"`{SIGNS[conversion(source, target).way]}`" for target in targets)
        yield f"| {_name(source)} | " + " | ".join(signs) + " |"


def _name(source: str) -> str:
    return NAMES.get(source, f"`{source}`")


def _reasons() -> Iterator[str]:
    yield ""
    yield "| from | into | why | next step |"
    yield "| --- | --- | --- | --- |"
    for source in SOURCES:
        found: dict[tuple[str, str], list[str]] = {}
        for target in TARGETS:
            cell = conversion(source, target)
            if cell.is_refused:
                found.setdefault((cell.rule, cell.next_step), []).append(target)
        for (rule, next_step), targets in found.items():
            yield f"| {_name(source)} | {_span(targets)} | {rule} | {next_step} |"


def _span(targets: Sequence[str]) -> str:
    if len(targets) == len(TARGETS):
        return "all"
    left = [target for target in TARGETS if target not in targets]
    if len(left) < len(targets):
        return "all but " + ", ".join(f"`{target}`" for target in left)
    return ", ".join(f"`{target}`" for target in targets)


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE}: {len(SOURCES)} x {len(TARGETS)} cells\n")
