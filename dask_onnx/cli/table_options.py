"""Parsers of the options of ``dask-onnx predict`` that state the types of a table's columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dask_onnx.core.errors import InputError


def parse_dtypes(texts: Sequence[str]) -> dict[str, str] | None:
    """Return what `predict_files` takes as `dtype`.

    Parameters
    ----------
    texts : sequence of str
        ``COLUMN=TYPE``, or several of these with commas between them.

    Raises
    ------
    InputError
        A text is not of that form, or a column has two types.
    """
    found: dict[str, str] = {}
    for text in texts:
        for part in text.split(","):
            column, equals, name = part.strip().rpartition("=")
            if not equals or not column or not name:
                raise InputError(
                    f"{part!r} names no type for a column", "give it as COLUMN=TYPE", option="dtype"
                )
            if found.setdefault(column, name) != name:
                raise InputError(
                    f"column {column!r} has two types: {found[column]} and {name}",
                    "leave out one of them",
                    option="dtype",
                    column=column,
                )
    return found or None


def parse_missing(texts: Sequence[str]) -> Any:
    """Return what `predict_files` takes as `na_values`.

    Parameters
    ----------
    texts : sequence of str
        ``TEXT`` for all columns, or ``COLUMN=TEXT`` for one.

    Raises
    ------
    InputError
        Texts for all columns and for single ones were mixed.
    """
    pairs = [text.rpartition("=") for text in texts]
    named = [pair for pair in pairs if pair[1]]
    if named and len(named) < len(pairs):
        raise InputError(
            "texts for all columns and for single ones were mixed",
            "give all as TEXT, or all as COLUMN=TEXT",
            option="na_values",
        )
    if not named:
        return list(texts) or None
    found: dict[str, list[str]] = {}
    for column, _, text in named:
        found.setdefault(column, []).append(text)
    return found
