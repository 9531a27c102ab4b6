"""The command ``dask-onnx doctor``: what is wrong with a cluster, or with this host."""

from __future__ import annotations

import json

import click

from dask_onnx.cli import Options, common_options
from dask_onnx.cli.printing import echo
from dask_onnx.diagnostics.diagnosis import Diagnosis, diagnose
from dask_onnx.jobs.job_cluster import observing_client

EXIT_BROKEN = 1
"""Exit code where something is broken; a scheduler that cannot be reached is bad input, 2."""


@click.command("doctor")
@click.option("--scheduler", metavar="ADDRESS", help="Cluster to look at, tcp://HOST:PORT.")
@common_options
@click.pass_context
def command(context: click.Context, scheduler: str | None) -> None:
    """Say what is wrong with a cluster, and what to do about it; without one, with this host.

    Nothing is changed and no model runs. What is printed has no secrets and is fit for a bug
    report. The exit code is 1 if something is broken.
    """
    options: Options = context.obj
    found = diagnose() if scheduler is None else _diagnose_at(scheduler)
    echo(json.dumps(found.as_dict(), indent=2) if options.as_json else str(found))
    if found.is_broken:
        context.exit(EXIT_BROKEN)


def _diagnose_at(address: str) -> Diagnosis:
    with observing_client(address) as client:
        return diagnose(client)
