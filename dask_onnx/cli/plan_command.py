"""The command ``dask-onnx plan``: show how a model would be divided into stages."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click
import onnx
from click.core import ParameterSource

from dask_onnx.api.loading import load
from dask_onnx.api.picture_paths import check_picture
from dask_onnx.api.plan import Plan
from dask_onnx.cli import Options, common_options
from dask_onnx.cli.error_report import in_options
from dask_onnx.cli.parameters import (
    STRATEGY_NAMES,
    configuration_option,
    is_untrusted,
    n_stages_option,
    outputs_option,
    shape_option,
    strategy_option,
    trusted_option,
)
from dask_onnx.cli.plan_json import as_dict
from dask_onnx.cli.plan_request import PlanOptions
from dask_onnx.cli.printing import echo
from dask_onnx.cluster.configuration import calibrate
from dask_onnx.core import config
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.diagnostics.sections import render_text
from dask_onnx.jobs.job_cluster import JobCluster
from dask_onnx.modelio.weights import graphs_of, is_external

_BATCHES = 16
"""Micro-batches of the schedule by default."""

_CUT = (
    strategy_option,
    configuration_option,
    n_stages_option,
    click.option(
        "--n-workers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Most stages side by side; for --strategy branches. 2 by default.",
    ),
    click.option(
        "--min-seconds",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Least predicted time of a stage; for --strategy fused.",
    ),
    click.option(
        "--memory-limit",
        metavar="SIZE",
        help="Most weights and activations of a stage, as 2GiB; for --strategy pipeline.",
    ),
    click.option("--stage-memory", hidden=True),
    click.option(
        "--cut-at",
        multiple=True,
        metavar="VALUE,...",
        help="End a stage at each of these values; a+b end one together. May be repeated, which "
        "values with a comma or a plus in their names need.",
    ),
    outputs_option,
    shape_option,
)
"""Options of the cut."""
_KNOW = (
    click.option(
        "--aim",
        type=click.Choice(["throughput", "latency"]),
        help="Many tasks at a time, each with its share of the cores; or one with all of them.",
    ),
    click.option(
        "--measure",
        metavar="FILE",
        help="Predict by the times of the nodes on these rows, which are run here a few times: "
        ".npy, or .npz by input name.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Plan for this cluster, tcp://HOST:PORT, and show what its workers have measured.",
    ),
    click.option(
        "--batches",
        type=click.IntRange(min=1),
        metavar="N",
        help="Micro-batches of the schedule (16 by default), and that --strategy auto decides for "
        "(eight for each thread).",
    ),
)
"""Options of the work and the cluster."""
_RUN = (
    click.option(
        "--schedule",
        type=click.Choice(["async", "sync", "hybrid"]),
        help="Order of micro-batches; async if stages stay on workers, otherwise left to Dask.",
    ),
    click.option(
        "--in-flight",
        type=click.IntRange(min=1),
        metavar="N",
        help="Most micro-batches between their first and their last stage; two for each stage.",
    ),
    click.option(
        "--worker-groups", metavar="N,N,...", help="Worker that each stage stays on, as 0,1,0."
    ),
    click.option(
        "--allow-other-workers",
        is_flag=True,
        help="Let idle workers take stages of --worker-groups.",
    ),
)
"""Options of the schedule and the placement."""
_SHOW = (
    click.option(
        "--output",
        type=click.Path(),
        help="Write the plan there: a picture as .svg, a page as .html, or the model with its "
        "stages as .onnx.",
    ),
    click.option(
        "--diff",
        "rival",
        type=click.Choice(STRATEGY_NAMES),
        help="Show the difference from the plan of this strategy, with the options that it takes.",
    ),
    click.option(
        "--annotate",
        metavar="FILE",
        help="Write MODEL there with these stages, for --strategy from_annotations.",
    ),
)
"""Options of what is shown and written."""


def _plan_options(function: Callable[..., None]) -> Any:
    options = (*_CUT, *_KNOW, *_RUN, *_SHOW)
    return reduce(lambda decorated, option: option(decorated), reversed(options), function)


@click.command("plan")
@click.argument("model_path", metavar="MODEL")
@_plan_options
@trusted_option
@common_options
@click.pass_context
def command(
    context: click.Context,
    /,
    model_path: str,
    strategy: str,
    scheduler: str | None,
    output: str | None,
    annotate: str | None,
    **options: Any,
) -> None:
    """Show how MODEL would be divided into stages: their cost, the edges and their bytes.

    MODEL is run for --measure only. The first plan on a host that compares the times of nodes
    measures the speed of its CPU, for a tenth of a second; with --scheduler, also the time that
    workers take to send a value.
    """
    is_given = context.get_parameter_source("strategy") is not ParameterSource.DEFAULT
    asked = PlanOptions(strategy=strategy if is_given else None, **options)
    asked.check()
    if output is not None:
        check_picture(output)
    if annotate is not None:
        _check_annotate(Path(annotate))
    common: Options = context.obj
    with contextlib.ExitStack() as stack:
        model, client = load(model_path, untrusted=is_untrusted(common)), None
        if scheduler is not None:
            client = stack.enter_context(JobCluster(scheduler).connect())
            if config.get("plan.calibrate"):
                calibrate(client)
        plan = asked.plan(model, client)
        if client is not None:
            plan.measured()  # asks the workers, which explaining a plan does not
        rival = asked.rival_plan(model, plan, client)
        difference = None if rival is None else plan.diff(rival)
        if output is not None:
            plan.visualize(output)
        if annotate is not None:
            _write_annotated(plan, model_path, Path(annotate))
        batches = asked.batches or _BATCHES
        if common.as_json:
            echo(json.dumps(as_dict(plan, difference, batches=batches), indent=2))
            return
        sections = plan.sections(batches=batches)
        echo(render_text(sections, lambda each: _in_options(each, context)))
    if difference is not None:
        echo(f"\nthe other is {asked.rival}\n{difference}")
    if output is not None:
        echo(f"\nwritten: {output}")
    if annotate is not None:
        echo(f"\nannotated model: {annotate}")


def _in_options(suggestion: Suggestion, context: click.Context) -> str:
    return f"{context.command_path} {in_options(suggestion, context.command)}"


def _check_annotate(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder", "name a file in it", option="annotate")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist", "create it", option="annotate")


def _write_annotated(plan: Plan, model_path: str, path: Path) -> None:
    """Write the model with the plan's stages; its external data stay where they are."""
    folder = path.absolute().parent
    model = plan.annotate(model_path)
    is_beside = not is_url(model_path) and Path(model_path).absolute().parent.samefile(folder)
    outside = [t.name for g in graphs_of(model) for t in g.initializer if is_external(t)]
    if outside and not is_beside:
        raise InputError(
            f"{len(outside)} tensors of {model_path}, such as {outside[0]!r}, are in files beside "
            f"it, where a model in {folder} does not find them",
            "name a file in the folder of MODEL",
            option="annotate",
            numbers={"tensors": len(outside)},
        )
    onnx.save(model, path)
