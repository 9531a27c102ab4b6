"""Checks of the values of a job's options, before they reach code that assumes their types."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral
from typing import Any

from dask_onnx.core.errors import InputError, Suggestion


def check_count(value: Any, option: str, *, least: int = 1) -> None:
    """Raise an error unless a value is None or a whole number that is large enough.

    Parameters
    ----------
    value : Any
    option : str
        Name of the option.
    least : int
        Smallest number.

    Raises
    ------
    InputError
        It is another value.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InputError(
            f"{option} is {value!r}", f"give a whole number of at least {least}", option=option
        )


def check_text(value: Any, option: str) -> None:
    """Raise an error unless a value is None or a text.

    Raises
    ------
    InputError
        It is another value.
    """
    if value is not None and not isinstance(value, str):
        raise InputError(f"{option} is {value!r}", "give a text", option=option)


def check_choice(value: Any, option: str, choices: Collection[str]) -> None:
    """Raise an error unless a value is one of some words.

    Raises
    ------
    InputError
        It is another value.
    """
    if value not in choices:
        raise InputError(
            f"{option} is {value!r}",
            f"choose one of {', '.join(choices)}",
            option=option,
            suggestions=[Suggestion(option, each) for each in choices],
        )


def check_mapping(value: Any, option: str, example: str) -> None:
    """Raise an error unless a value is None or a mapping.

    Parameters
    ----------
    value : Any
    option : str
        Name of the option.
    example : str
        A value that it takes, as Python source.

    Raises
    ------
    InputError
        It is another value.
    """
    if value is not None and not isinstance(value, Mapping):
        raise InputError(
            f"{option} is {value!r}, which is no mapping",
            f"pass a dict, such as {option}={example}",
            option=option,
        )


def names_of(value: Any, option: str) -> list[str] | None:
    """Return the names that an option gives, as one text or as several; None for none.

    Raises
    ------
    InputError
        It is another value, or one of them is no text.
    """
    if value is None:
        return None
    found = [value] if isinstance(value, str) else value
    try:
        names = list(found)
    except TypeError:
        names = [found]
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"{option} is {value!r}", "give a name, or a list of names", option=option)
    return names or None


def counts_of(value: Any, option: str) -> tuple[int, ...] | None:
    """Return the numbers that an option gives; None for none.

    Raises
    ------
    InputError
        It is no sequence, or one of them is no whole number of at least 1.
    """
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InputError(
            f"{option} is {value!r}",
            "give a list of whole numbers, such as [16, 32]",
            option=option,
        )
    numbers = tuple(value)
    for number in numbers:
        check_count(number, option)
    return numbers


def path_text(value: Any, option: str) -> str:
    """Return a path or URL as text.

    Raises
    ------
    InputError
        It is no path, or is empty, as where a variable of a shell is not set.
    """
    try:
        text = os.fspath(value)
    except TypeError:
        text = None
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"{option} is {value!r}, which is no path", "give a path or a URL", option=option
        )
    return text
