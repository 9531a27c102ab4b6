"""A profile as one HTML file that needs no network: charts by Bokeh, light and dark, for print too.

Bokeh is optional (``dask-onnx[dashboard]``), so modules with charts are imported when one is made.
"""

from __future__ import annotations

import os
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dask_onnx.core.errors import InputError
from dask_onnx.core.formatting import format_bytes, format_count, format_seconds, printable
from dask_onnx.core.process_caches import cached_in_process
from dask_onnx.diagnostics.profiling.profile_files import check_target
from dask_onnx.diagnostics.profiling.profile_rows import rows_of
from dask_onnx.diagnostics.profiling.run_profile import RunProfile
from dask_onnx.diagnostics.profiling.run_summary import RunSummary, summary_of


def write_html(profile: RunProfile, path: str | os.PathLike[str]) -> None:
    """Write a profile as an HTML file.

    Parameters
    ----------
    profile : RunProfile
    path : path of an ``.html`` file

    Raises
    ------
    InputError
        Bokeh is not installed; or see `check_target`.
    """
    target = check_target(path, (".html",), "path")
    target.write_text(html_of(profile), encoding="utf-8")


def html_of(profile: RunProfile) -> str:
    """Return a profile as an HTML document.

    Raises
    ------
    InputError
        Bokeh is not installed.
    """
    check_bokeh()
    from dask_onnx.diagnostics.profiling.report_parts import embed, parts_of

    parts = parts_of(profile)
    embedded = embed(parts)
    summary = summary_of(profile)
    return (
        _templates()
        .get_template("profile_report.html.j2")
        .render(
            title=f"Profile {printable(profile.id)}",
            tiles=_tiles(profile, summary),
            parts=parts,
            advice=[(printable(each.what), str(each)) for each in summary.advice],
            errors=[{k: _text(v) for k, v in row.items()} for row in rows_of(profile, "error")],
            notes=[printable(note) for note in profile.notes],
            facts=_facts(profile),
            resources=Markup(embedded.resources),
            script=Markup(embedded.script),
            places={name: Markup(place) for name, place in embedded.places.items()},
        )
    )


def check_bokeh() -> None:
    """Check that reports can be made.

    Raises
    ------
    InputError
        Bokeh is not installed.
    """
    try:
        import bokeh  # noqa: F401 - only whether it is installed
    except ImportError as error:
        raise InputError(
            "reports in HTML need bokeh, which is not installed",
            "pip install 'dask-onnx[dashboard]', or write a .json file",
            reason=str(error),
        ) from error


def _tiles(profile: RunProfile, summary: RunSummary) -> list[tuple[str, str]]:
    """Return the numbers at the top of the page, each with its name."""
    model = summary.shares.get("model", 0.0)
    found = [
        ("wall time", format_seconds(profile.wall)),
        ("workers", f"{len(profile.workers):,}"),
        ("slots", f"{profile.slots:,}"),
        ("tasks", f"{len(profile.tasks):,}"),
    ]
    if summary.rows:
        found.append(("rows", f"{summary.rows:,}"))
        found.append(("rows/s", f"{summary.rows / max(profile.wall, 1e-9):,.1f}"))
    if summary.slot_seconds:
        found.append(("in the model", f"{model / summary.slot_seconds:.0%}"))
    moved = sum(each.wire_bytes or each.plain_bytes for each in profile.transfers)
    if moved:
        found.append(("transferred", format_bytes(moved)))
    errors = sum(each.count for each in profile.errors)
    found.append(("errors", f"{errors:,}"))
    return found


def _facts(profile: RunProfile) -> list[tuple[str, str]]:
    sampled = [stage.sampled_share for stage in profile.stages if stage.sampled_share]
    nodes = f"{min(sampled):.1%} or more of the rows of a stage" if sampled else "none"
    return [
        ("scheduler", printable(profile.scheduler)),
        ("stages", format_count(len(profile.stages), "stage")),
        ("nodes timed in", nodes),
        *((printable(name), printable(str(each))) for name, each in profile.versions.items()),
    ]


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


@cached_in_process("HTML templates of reports")
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("dask_onnx.diagnostics"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
