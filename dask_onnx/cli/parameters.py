"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import click

from dask_onnx.core.errors import InputError
from dask_onnx.modelio.onnx_model import RowsDeclaration
from dask_onnx.planning.partition import STRATEGIES
from dask_onnx.planning.recipe import Strategy

STRATEGY_NAMES = ["auto", *(name for name in STRATEGIES if name != "at_values")]
"""Those that need no more than options."""
FROM_ANNOTATIONS = "from_annotations"
strategy_option = click.option(
    "--strategy",
    type=click.Choice(STRATEGY_NAMES),
    default="whole",
    show_default=True,
    help="How the model is cut into stages.",
)
n_stages_option = click.option(
    "--n-stages",
    type=click.IntRange(min=1),
    help="How many stages; for --strategy fused and pipeline.",
)
outputs_option = click.option(
    "--outputs", metavar="NAME,...", help="Outputs or values between; the model's by default."
)
configuration_option = click.option(
    "--configuration",
    metavar="NAME",
    help="Whose stages --strategy from_annotations takes, where a model has several.",
)
shape_option = click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=N,N,...",
    help="The shape of an input that costs are worked out for; may be repeated.",
)


rows_option = click.option(
    "--rows",
    "rows",
    metavar="independent|none|NAME=AXIS,...",
    help="Which axes carry rows; proven from the graph by default.",
)


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
                f"--rows {text!r} is not independent, none or NAME=AXIS", "such as x=0 or h=1,x=0"
            )
        rows[name] = int(axis)
    return rows


def named_strategy(name: str, configuration: str | None) -> str | Strategy:
    """What `Model.plan` takes.

    Raises
    ------
    InputError
        A configuration for a strategy that goes by none.
    """
    if configuration is None:
        return name
    if name != FROM_ANNOTATIONS:
        raise InputError(
            f"--configuration is for --strategy {FROM_ANNOTATIONS}", "leave it out, or name both"
        )
    return Strategy(name, {"configuration": configuration})


def split_names(text: str | None, separator: str = ",") -> list[str]:
    """``a,b`` as names."""
    return [name.strip() for name in text.split(separator)] if text else []


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]] | None:
    """``["x=1,3,640,640"]`` as a mapping; None if there are none.

    Raises
    ------
    InputError
        Not of that form.
    """
    shapes = {}
    for text in texts:
        name, separator, sizes = text.rpartition("=")
        if not separator or not re.fullmatch(r"\d+([,x]\d+)*", sizes):
            raise InputError(f"--shape {text!r} is not NAME=N,N,...", "such as x=1,3,640,640")
        shapes[name] = tuple(int(size) for size in re.split("[,x]", sizes))
    return shapes or None
