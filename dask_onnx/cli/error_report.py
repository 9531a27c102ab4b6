"""Errors on the command line, built from their fields in terms of a command's own options."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click

from dask_onnx.cli.printing import echo
from dask_onnx.core.errors import DaskOnnxError, Suggestion

_NAMES = {"values": "cut_at", "mode": "schedule", "dtype": "dtypes", "append": "keep"}
"""Names of options in Python that are spelled differently on the command line."""


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """Printed form of an error."""

    kind: str
    """Name of the error's class, for programs."""
    cause: str
    next_step: str = ""
    fields: Mapping[str, Any] | None = None
    """Fields of a DaskOnnxError, as JSON can hold them; None for other errors."""

    def show(self, *, as_json: bool) -> None:
        """Print the report: as JSON to the standard output, as text to the standard error."""
        if as_json:
            error: dict[str, Any] = {
                "kind": self.kind,
                "cause": self.cause,
                "next_step": self.next_step,
            }
            if self.fields is not None:
                error["fields"] = dict(self.fields)
            # Values of suggestions are whatever Python's options take.
            echo(json.dumps({"error": error}, default=str))
            return
        echo(f"error: {self.cause}", err=True)
        if self.next_step:
            echo(f"       {self.next_step}", err=True)


def report_of(error: DaskOnnxError, command: click.Command | None) -> ErrorReport:
    """Return the report of an error.

    Parameters
    ----------
    error : DaskOnnxError
    command : click.Command, optional
        The command whose options replace those of Python.
    """
    fields = dict(error.fields)
    if error.suggestions:
        found = [{"option": each.option, "value": each.value} for each in error.suggestions]
        fields["suggestions"] = found
    cause = " ".join(error.cause.split())
    option = None if error.option is None else _option(error.option, command)
    if option is not None and _flag(option) not in cause:
        cause = f"{_flag(option)}: {cause}"
    next_step = suggested_options(error, command) or error.next_step
    return ErrorReport(type(error).__name__, cause, next_step, fields)


def suggested_options(error: DaskOnnxError, command: click.Command | None) -> str:
    """Return a next step from the suggestions of an error; empty if the command has none of them.

    Parameters
    ----------
    error : DaskOnnxError
    command : click.Command, optional

    Examples
    --------
    ``try --n-stages 4, or --memory-limit 2GiB``
    """
    texts: dict[str, list[str]] = {}
    for suggestion in error.suggestions:
        option = _option(suggestion.option, command)
        # "Choose another value" says nothing about the option at fault.
        is_empty = suggestion.value is None and suggestion.option == error.option
        if option is not None and not is_empty:
            texts.setdefault(_flag(option), []).extend(_values(suggestion, option))
    phrases = [f"{flag} {' or '.join(values)}".rstrip() for flag, values in texts.items()]
    return f"try {', or '.join(phrases)}" if phrases else ""


def in_options(suggestion: Suggestion, command: click.Command) -> str:
    """Return how a command takes a suggestion; as in Python if it does not take it."""
    option = _option(suggestion.option, command)
    if option is None:
        return str(suggestion)
    return " ".join([_flag(option), *_values(suggestion, option)])


def _option(name: str, command: click.Command | None) -> click.Option | None:
    """Return the option of a command that takes an option of Python, if there is one."""
    name = _NAMES.get(name, name)
    for parameter in () if command is None else command.params:
        if isinstance(parameter, click.Option) and parameter.name == name:
            return parameter
    return None


def _flag(option: click.Option) -> str:
    """Return the longest name of an option, such as ``--n-stages``."""
    return max(option.opts, key=len)


def _values(suggestion: Suggestion, option: click.Option) -> Iterator[str]:
    value = suggestion.value
    if option.is_flag:
        return
    if value is None:
        if option.metavar:
            yield option.metavar
    elif isinstance(value, Mapping):
        yield " ".join(f"{name}={_text(each)}" for name, each in value.items())
    else:
        yield shlex.quote(_text(value))


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
