"""The command ``dask-onnx top``: a live view of a cluster's models, stages, workers and links."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import click
from distributed import Client
from rich.console import Console, Group
from rich.live import Live

from dask_onnx.cli import Options, common_options
from dask_onnx.cli.printing import echo
from dask_onnx.cluster.cluster_snapshot import Snapshot, take_snapshot
from dask_onnx.diagnostics.live_view import render_snapshot
from dask_onnx.jobs.job_cluster import observing_client

_ONCE_SECONDS = 0.5
"""Time between the two snapshots from which rates are known."""
_PLAIN_WIDTH = 160
"""Characters of a line where the output is no terminal."""


@click.command("top")
@click.option("--scheduler", metavar="ADDRESS", required=True, help="Cluster, tcp://HOST:PORT.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks.",
)
@click.option("--once", is_flag=True, help="Print one look and end, as where output is piped.")
@common_options
@click.pass_obj
def command(options: Options, scheduler: str, interval: float, once: bool) -> None:
    """Watch the models, stages, workers and links of a cluster; Ctrl-C ends it.

    The scheduler is asked, and no worker: nothing is changed or slowed down.
    """
    console = Console()
    with observing_client(scheduler) as client:
        if options.as_json:
            echo(json.dumps(asdict(take_snapshot(client))))
        elif once or not console.is_terminal:
            width = console.width if console.is_terminal else _PLAIN_WIDTH
            Console(width=width).print(_look(client, None, _ONCE_SECONDS)[1])
        else:
            _watch(client, console, interval)


def _look(client: Client, before: Snapshot | None, seconds: float) -> tuple[Snapshot, Group]:
    """Return a snapshot some seconds after another one, and its view."""
    before = before or take_snapshot(client)
    time.sleep(seconds)
    now = take_snapshot(client)
    return now, render_snapshot(now, before)


def _watch(client: Client, console: Console, interval: float) -> None:
    last = take_snapshot(client)
    with Live(render_snapshot(last), console=console, auto_refresh=False, screen=True) as live:
        try:
            while True:
                last, view = _look(client, last, interval)
                live.update(view, refresh=True)
        except KeyboardInterrupt:
            return  # the way to end it
