"""Errors on the command line, built from their fields in terms of a command's own options."""

from __future__ import annotations

import ast
import json
import re
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
    is_remedy = option is not None and option.is_flag and error.option in _suggested(error)
    if option is not None and not is_remedy and _flag(option) not in cause:
        cause = f"{_flag(option)}: {cause}"
    next_step = _next_step(error, command)
    return ErrorReport(type(error).__name__, cause, next_step, fields)


def _suggested(error: DaskOnnxError) -> set[str]:
    return {each.option for each in error.suggestions}


def _next_step(error: DaskOnnxError, command: click.Command | None) -> str:
    """Return what to do next: options that avoid the error, or else its own words.

    Where options without a value avoid it, such as ``--overwrite``, its words tell what they do.
    """
    if command is None:
        return error.next_step
    words = in_flags(error.next_step, command)
    found = [_option(each.option, command) for each in error.suggestions]
    flags = [_flag(option) for option in found if option is not None and option.is_flag]
    if flags and len(flags) == len(found) and all(flag in words for flag in flags):
        return words
    return suggested_options(error, command) or words


_SETTING = re.compile(
    r"dx\.load\(\.\.\., (?P<load>[^()]*)\)"
    r"|(?P<call>[\w.]+\([^()]*\))"
    r"|\b(?P<name>[a-z_]+)="
    r"(?P<value>'[^']*'|\"[^\"]*\"|\[[^]]*\]|\{[^}]*\}|\.\.\.|[\w.]*\w)?"
)
"""Option with its value in Python, such as ``columns=[...]``; also in a call of `load`."""


def in_flags(text: str, command: click.Command) -> str:
    """Return a text in which options of Python are those of a command.

    Calls of Python stay as they are, and so do options that the command does not have.

    Parameters
    ----------
    text : str
        Such as ``pass overwrite=True, or name them: columns=[...]``.
    command : click.Command

    Examples
    --------
    ``pass --overwrite, or name them: --columns NAME,...``
    """

    def in_flag(match: re.Match[str]) -> str:
        if match["load"] is not None:
            return in_flags(match["load"], command)
        option = None if match["name"] is None else _option(match["name"], command)
        return match[0] if option is None else _setting(option, match, command)

    found = _SETTING.sub(in_flag, text)
    # Some texts name the option of the command line beside that of Python.
    return re.sub(r"(--[a-z-]+) \(\1\)", r"\1", found)


def _setting(option: click.Option, match: re.Match[str], command: click.Command) -> str:
    """Return one option with its value as the command takes it."""
    flag, text = _flag(option), match["value"]
    if option.is_flag:
        return flag if text == "True" else match[0]
    if text is None:
        return flag
    if text.startswith("{") and (feeds := _option("feeds", command)) and option.name == "columns":
        return f"{_flag(feeds)} {feeds.metavar}"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = ...  # a placeholder, or a word without quotes
    if value is None:
        return match[0]
    if value is ... or (isinstance(value, list) and ... in value):
        is_word = text[0].isalnum()
        return f"{flag} {text if is_word else option.metavar or ''}".rstrip()
    return " ".join([flag, *_values(Suggestion(option.name or "", value), option)])


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
