"""The option ``--profile``: a profile of what a command runs, written to a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dask_onnx.diagnostics.profiling.finished_profile import FinishedProfile
from dask_onnx.diagnostics.profiling.profile_files import check_target
from dask_onnx.diagnostics.profiling.profiler import profile
from dask_onnx.diagnostics.profiling.report_html import check_bokeh

_SUFFIXES = (".html", ".json")
"""Endings of the files that profiles are written to."""


@contextlib.contextmanager
def recorded(path: str | None) -> Iterator[None]:
    """Record what runs in a block, and write it to a file when the block ends without an error.

    Parameters
    ----------
    path : str or None
        Path of the file; None records nothing.

    Raises
    ------
    InputError
        The path has another ending, is a folder, or its folder does not exist; Bokeh is needed and
        not installed.
    """
    if path is None:
        yield
        return
    target = check_target(path, _SUFFIXES, "profile")
    if target.suffix == ".html":
        check_bokeh()
    with profile() as prof:
        yield
    write_outcome(prof, target)


def write_outcome(prof: FinishedProfile, target: Path) -> None:
    """Write a profile in the form that the name of the file asks for."""
    if target.suffix == ".html":
        prof.to_html(target)
    else:
        prof.save(target)
