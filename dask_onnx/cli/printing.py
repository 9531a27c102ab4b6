"""Text of the command line, of which names from models and files are a part."""

from __future__ import annotations

import click

from dask_onnx.core.formatting import printable_lines


def echo(text: str = "", *, err: bool = False) -> None:
    """Print lines, with escapes in the place of control characters, whether or not to a terminal.

    Parameters
    ----------
    text : str
        Lines that are separated by line feeds.
    err : bool
        True to print to the standard error.
    """
    click.echo(printable_lines(text), err=err)
