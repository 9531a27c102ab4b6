"""A finished profile, with everything that can be made of its record."""

from __future__ import annotations

import os
from html import escape
from typing import Any

from dask_onnx.core.errors import InputError
from dask_onnx.diagnostics.profiling.profile_files import read_profile, write_profile
from dask_onnx.diagnostics.profiling.profile_rows import By, Row, rows_of
from dask_onnx.diagnostics.profiling.report_html import write_html
from dask_onnx.diagnostics.profiling.run_comparison import Comparison, compare_profiles
from dask_onnx.diagnostics.profiling.run_profile import RunProfile
from dask_onnx.diagnostics.profiling.run_summary import RunSummary, summary_of


class FinishedProfile:
    """Tables, summary, trace and comparison of a recorded run.

    Made by `dask_onnx.profile` when its block ends, and by `dask_onnx.load_profile`.

    Parameters
    ----------
    result : RunProfile
        The record.
    """

    def __init__(self, result: RunProfile) -> None:
        self._result: RunProfile | None = result

    @property
    def result(self) -> RunProfile:
        """The record: workers, stages, tasks, transfers, nodes and the rest, as data.

        Raises
        ------
        InputError
            The block has not ended.
        """
        if self._result is None:
            raise InputError(
                "the profile has no result before its block ends", "leave the `with` block first"
            )
        return self._result

    def rows(self, by: By = "stage") -> list[Row]:
        """Return the rows of a table as dicts, the most expensive first.

        Parameters
        ----------
        by : str
            What a row stands for: "stage", "node", "op_type", "worker", "link", "block" (of the
            input), "task", "transfer", "error", "stream" (of frames) or "metric" (of Dask's own).

        Returns
        -------
        list of dict
            Column to value; times in seconds, sizes in bytes, shares from 0 to 1.

        Raises
        ------
        InputError
            There is no such table, or the block has not ended.

        Examples
        --------
        >>> prof.rows("link")[0]["bytes_per_second"]
        """
        return rows_of(self.result, by)

    def table(self, by: By = "stage") -> Any:
        """Return a table as a pandas DataFrame.

        Parameters
        ----------
        by : str
            As for `rows`.

        Raises
        ------
        InputError
            pandas is not installed, there is no such table, or the block has not ended.

        Examples
        --------
        >>> prof.table("node").head(10)
        """
        rows = self.rows(by)
        try:
            import pandas
        except ImportError as error:
            raise InputError(
                "tables of profiles need pandas, which is not installed",
                "pip install 'dask-onnx[dataframe]', or call rows() for lists of dicts",
                reason=str(error),
            ) from error
        return pandas.DataFrame(rows)

    def summary(self) -> RunSummary:
        """Return where the time went and what to do about it; ``print`` shows it on one screen.

        Raises
        ------
        InputError
            The block has not ended.

        Examples
        --------
        >>> print(prof.summary())
        """
        return summary_of(self.result)

    def to_trace(self, path: str | os.PathLike[str]) -> None:
        """Write a trace that ui.perfetto.dev and chrome://tracing open.

        The file holds the whole profile too, for `load_profile` and ``dask-onnx report``.

        Parameters
        ----------
        path : path of a ``.json`` file

        Raises
        ------
        InputError
            Another ending, or a folder that does not exist; the block has not ended.

        Examples
        --------
        >>> prof.to_trace("run.json")
        """
        write_profile(self.result, path)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a report as one HTML file that needs no network.

        It has the time line, stages as a graph coloured by time, links as a matrix, nodes as a
        table, memory, predictions beside measurements, and errors; it follows light and dark pages.

        Parameters
        ----------
        path : path of an ``.html`` file

        Raises
        ------
        InputError
            Bokeh is not installed, another ending, or a folder that does not exist; the block has
            not ended.

        Examples
        --------
        >>> prof.to_html("run.html")
        """
        write_html(self.result, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile for `load_profile`; the same as `to_trace`.

        Parameters
        ----------
        path : path of a ``.json`` file

        Raises
        ------
        InputError
            As for `to_trace`.
        """
        self.to_trace(path)

    def compare(self, other: FinishedProfile) -> Comparison:
        """Return what became slower from this profile to another, with the noise.

        Parameters
        ----------
        other : FinishedProfile
            A later profile of like work.

        Raises
        ------
        InputError
            `other` is no profile; a block has not ended.

        Examples
        --------
        >>> print(before.compare(after))
        """
        if not isinstance(other, FinishedProfile):
            raise InputError(
                f"a profile is compared with a profile, not with a {type(other).__name__}",
                "give the result of dx.profile or dx.load_profile",
                option="other",
            )
        return compare_profiles(self.result, other.result)

    def _repr_html_(self) -> str:
        """Return the summary as notebooks show it."""
        return f"<pre>{escape(repr(self))}</pre>" if self._result is None else self.summary().html

    def __repr__(self) -> str:
        if self._result is None:
            return "<dask_onnx profile that has not ended>"
        found = self._result
        return (
            f"<dask_onnx profile of {found.wall:.2f} s: {len(found.tasks):,} tasks, "
            f"{len(found.transfers):,} transfers, {len(found.workers)} workers>"
        )


def load_profile(path: str | os.PathLike[str]) -> FinishedProfile:
    """Read a profile that `save`, `to_trace` or ``--profile`` has written.

    Parameters
    ----------
    path : path of a ``.json`` file

    Returns
    -------
    FinishedProfile

    Raises
    ------
    InputError
        The file cannot be read, or is no profile.

    Examples
    --------
    >>> print(dx.load_profile("run.json").summary())
    """
    return FinishedProfile(read_profile(path))
