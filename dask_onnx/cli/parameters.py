"""Options that several commands share, and the parsers of their values."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import click

from dask_onnx.cli import Options
from dask_onnx.core import config
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.modelio.rows_declaration import RowsDeclaration
from dask_onnx.planning.partition import STRATEGIES
from dask_onnx.planning.recipe import Strategy

STRATEGY_NAMES = ["auto", *(name for name in STRATEGIES if name != "at_values")]
"""Strategies that options can describe; "at_values" is --cut-at."""
FROM_ANNOTATIONS = "from_annotations"
strategy_option = click.option(
    "--strategy",
    type=click.Choice(STRATEGY_NAMES),
    default="whole",
    show_default=True,
    help="Division of the model into stages.",
)
n_stages_option = click.option(
    "--n-stages",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of stages; for --strategy fused and pipeline.",
)
outputs_option = click.option(
    "--outputs",
    metavar="NAME,...",
    help="Outputs or intermediate values; the model's outputs by default.",
)
configuration_option = click.option(
    "--configuration",
    metavar="NAME",
    help="Device configuration for --strategy from_annotations, if the model has several.",
)
shape_option = click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=N,N,...",
    help="Shape of an input for which costs are predicted; may be repeated.",
)
rows_option = click.option(
    "--rows",
    "rows",
    metavar="independent|none|NAME=AXIS,...",
    help="Axes that carry rows; proven from the graph by default.",
)


_CLUSTER_OPTIONS = (
    click.option("--workers", type=click.IntRange(min=1), help="Processes; one a core by default."),
    click.option(
        "--threads", type=click.IntRange(min=1), help="Threads of a process; 1 by default."
    ),
    click.option("--scheduler", metavar="ADDRESS", help="Existing cluster, tcp://HOST:PORT."),
)


def cluster_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that runs on a cluster: one of its own, or an existing one."""
    for option in reversed(_CLUSTER_OPTIONS):
        function = option(function)
    return function


def _keep_trust(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    options: Options = context.find_root().obj or context.obj
    options.trusted = value


trusted_option = click.option(
    "--trusted",
    is_flag=True,
    expose_value=False,
    callback=_keep_trust,
    help="Do not try MODEL in a subprocess before its first use on this host.",
)


def is_untrusted(options: Options) -> bool:
    """Return what `load` takes as `untrusted`."""
    return not options.trusted and bool(config.get("untrusted.command-line"))


def parse_rows(text: str | None) -> RowsDeclaration:
    """Return what `load` takes as `rows`.

    Raises
    ------
    InputError
        Neither of the two words, nor names with an axis.
    """
    if text is None or text == "independent" or text == "none":
        return cast(RowsDeclaration, text)
    rows = {}
    for part in split_names(text):
        name, separator, axis = part.rpartition("=")
        if not separator or not axis.isdigit():
            raise InputError(
                f"{text!r} is not independent, none or NAME=AXIS",
                "give it as x=0 or h=1,x=0",
                option="rows",
            )
        rows[name] = int(axis)
    return rows


def named_strategy(name: str, configuration: str | None) -> str | Strategy:
    """Return what `Model.plan` takes as `strategy`.

    Raises
    ------
    InputError
        There is a configuration, and the strategy does not use one.
    """
    if configuration is None:
        return name
    if name != FROM_ANNOTATIONS:
        raise InputError(
            f"strategy {name} does not use a configuration",
            "leave it out, or choose the strategy that does",
            option="configuration",
            suggestions=(Suggestion("strategy", FROM_ANNOTATIONS),),
        )
    return Strategy(name, {"configuration": configuration})


def split_names(text: str | None, separator: str = ",") -> list[str]:
    """Return the names in ``a,b``; an empty list for no text."""
    return [name.strip() for name in text.split(separator)] if text else []


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]] | None:
    """Return ``["x=1,3,640,640"]`` as a mapping of names to shapes; None if there are none.

    Raises
    ------
    InputError
        A text is not of that form.
    """
    shapes = {}
    for text in texts:
        name, separator, sizes = text.rpartition("=")
        if not separator or not re.fullmatch(r"\d+([,x]\d+)*", sizes):
            raise InputError(
                f"{text!r} is no shape of an input", "give it as x=1,3,640,640", option="shapes"
            )
        shapes[name] = tuple(int(size) for size in re.split("[,x]", sizes))
    return shapes or None


def find_in_current_folder() -> None:
    """Let functions that are named as MODULE:FUNCTION be found in the current folder first.

    Only for a command that was given such a name: a folder that came with a model must not be able
    to replace the modules that are imported to read it.
    """
    folder = os.getcwd()  # noqa: PTH109 - sys.path holds strings
    if folder not in sys.path:
        sys.path.insert(0, folder)
