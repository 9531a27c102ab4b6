"""The command ``dask-onnx report``: what a saved profile says, and how it differs from another."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, get_args

import click

from dask_onnx.cli import Options, common_options
from dask_onnx.cli.printing import echo
from dask_onnx.core.formatting import printable
from dask_onnx.diagnostics.profiling.finished_profile import FinishedProfile, load_profile
from dask_onnx.diagnostics.profiling.profile_rows import By, Row
from dask_onnx.diagnostics.profiling.run_comparison import Comparison

_SHOWN = 30
"""Rows of a table that are printed."""


@click.command("report")
@click.argument("run", metavar="RUN")
@click.option("--compare", "other", metavar="OTHER", help="A later profile: what became slower?")
@click.option("--by", type=click.Choice(get_args(By)), help="Print a table instead.")
@click.option("--html", metavar="FILE", help="Write a page with charts to FILE instead.")
@common_options
@click.pass_obj
def command(
    options: Options, /, run: str, other: str | None, by: By | None, html: str | None
) -> None:
    """Show where the time of RUN went, a .json file of --profile or of dx.profile.

    With --compare, tell what became slower from RUN to OTHER, beyond the noise. With --html, write
    one file that needs no network.
    """
    _check_choice(other, by, html)
    found = load_profile(run)
    if html is not None:
        found.to_html(html)
        text = json.dumps({"html": html}) if options.as_json else f"wrote {printable(html)}"
    elif other is not None:
        comparison = found.compare(load_profile(other))
        text = json.dumps(_as_json(comparison)) if options.as_json else str(comparison)
    elif by is not None:
        rows = found.rows(by)
        text = json.dumps(rows) if options.as_json else table_text(rows)
    else:
        text = json.dumps(_summary(found)) if options.as_json else str(found.summary())
    echo(text)


def _check_choice(other: str | None, by: str | None, html: str | None) -> None:
    given = {"--compare": other, "--by": by, "--html": html}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise click.UsageError(f"give one of {' and '.join(names)}")


def _summary(found: FinishedProfile) -> dict[str, Any]:
    summary = found.summary()
    return {
        "wall": summary.wall,
        "slots": summary.slots,
        "slot_seconds": summary.slot_seconds,
        "rows": summary.rows,
        "shares": dict(summary.shares),
        "advice": [asdict(advice) for advice in summary.advice],
        "notes": list(found.result.notes),
        "stages": found.rows("stage"),
        "links": found.rows("link"),
        "errors": found.rows("error"),
        "streams": found.rows("stream"),
    }


def _as_json(comparison: Comparison) -> dict[str, Any]:
    def finite(value: float) -> float | None:
        return value if value not in (float("inf"), float("-inf")) else None

    return {
        "changes": [
            {
                **asdict(each),
                "noise": finite(each.noise),
                "change": finite(each.change),
                "is_significant": each.is_significant,
                "is_slower": each.is_slower,
            }
            for each in comparison.rows
        ],
        "slower": [f"{each.kind} {each.name}" for each in comparison.slower],
        "missing": list(comparison.missing),
    }


def table_text(rows: list[Row]) -> str:
    """Return the first rows of a table as text, a line each."""
    if not rows:
        return "nothing was recorded"
    names = [name for name in rows[0] if name != "token"]
    cells = [[_cell(row[name]) for name in names] for row in rows[:_SHOWN]]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in cells]
    head = "  ".join(f"{name:<{w}}" for name, w in zip(names, widths, strict=True))
    more = [f"and {len(rows) - _SHOWN:,} more"] if len(rows) > _SHOWN else []
    return "\n".join(line.rstrip() for line in (head, *lines, *more))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}"
    return "-" if value is None else printable(str(value))
