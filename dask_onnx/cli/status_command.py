"""The command ``dask-onnx status``: how far a run that writes an output has come."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from dask_onnx.cli import Options, common_options
from dask_onnx.cli.printing import echo
from dask_onnx.core.formatting import format_seconds
from dask_onnx.jobs.run_status import RunStatus, run_status

EXIT_CODES = {"complete": 0, "running": 3, "ended": 4, "foreign": 5}
"""Exit code by the state of the output."""


@click.command("status")
@click.argument("output_path", metavar="OUTPUT")
@common_options
@click.pass_context
def command(context: click.Context, output_path: str) -> None:
    """Show how far the run that writes OUTPUT has come.

    The exit code is 0 if OUTPUT is complete, 3 if a run writes it, 4 if a run has ended before it
    was complete, which `dask-onnx predict --resume` goes on with, and 5 if OUTPUT exists and there
    is no record of a run that wrote it as it is.
    """
    options: Options = context.obj
    found = run_status(output_path)
    if options.as_json:
        facts = asdict(found) | {
            "rows_left": found.rows_left,
            "blocks_left": found.blocks_left,
            "seconds_left": found.seconds_left,
        }
        echo(json.dumps(facts))
    else:
        echo("\n".join(lines_of(found)))
    context.exit(EXIT_CODES[found.state])


def lines_of(status: RunStatus) -> list[str]:
    """Return a status as lines of text."""
    lines = [f"{status.target}: {_STATES[status.state]}"]
    if status.reason is not None:
        lines.append(status.reason)
    if status.holder is not None:
        holder = status.holder
        lines.append(f"written by process {holder.pid} on {holder.host}, since {holder.since}")
    if status.blocks is not None:
        lines.append(_amount("blocks", status.blocks, status.all_blocks))
    if status.rows is not None:
        lines.append(_amount("rows", status.rows, status.all_rows))
    if status.rate is not None:
        left = status.seconds_left
        rest = "" if left is None else f", {format_seconds(left)} left"
        lines.append(f"{status.rate:,.1f} rows/s{rest}")
    if status.state == "ended":
        lines.append("dask-onnx predict --resume goes on; --overwrite starts anew")
    return lines


_STATES = {
    "complete": "complete",
    "running": "a run writes it",
    "ended": "incomplete, and no run writes it",
    "foreign": "not known to be the output of a run",
}


def _amount(noun: str, done: int, total: int | None) -> str:
    if total is None:
        return f"{done:,} {noun} complete"
    return f"{done:,} of {total:,} {noun} complete, {total - done:,} left"
