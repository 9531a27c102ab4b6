"""``dask-onnx plan``."""

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
from dask_onnx.api.plan import Plan, check_picture
from dask_onnx.cli import Options, common_options
from dask_onnx.cli.cluster_options import connect
from dask_onnx.cli.parameters import (
    STRATEGY_NAMES,
    configuration_option,
    n_stages_option,
    outputs_option,
    shape_option,
    strategy_option,
)
from dask_onnx.cli.plan_json import as_dict
from dask_onnx.cli.plan_request import Asked
from dask_onnx.cli.wording import in_options, worded_for
from dask_onnx.core.errors import InputError
from dask_onnx.core.files import is_url
from dask_onnx.modelio.weights import graphs_of, is_external

_BATCHES = 16
"""Micro-batches that are shown where none are asked for."""

_CUT = (
    strategy_option,
    configuration_option,
    n_stages_option,
    click.option(
        "--n-workers",
        type=click.IntRange(min=1),
        help="Stages side by side at most; for --strategy branches. 2 by default.",
    ),
    click.option(
        "--min-seconds",
        type=click.FloatRange(min=0, min_open=True),
        help="What a stage should compute at least, in predicted seconds; for --strategy fused.",
    ),
    click.option(
        "--memory-limit", help="Weights and activations of a stage at most, 2GiB; for pipeline."
    ),
    click.option("--stage-memory", hidden=True),
    click.option(
        "--cut-at",
        multiple=True,
        metavar="VALUE,...",
        help="Cut where these have been made; a+b end a stage together. May be repeated, as for a "
        "value with a comma or a plus in its name.",
    ),
    outputs_option,
    shape_option,
)
"""What is to be cut, and how."""
_KNOW = (
    click.option(
        "--aim",
        type=click.Choice(["throughput", "latency"]),
        help="Many tasks at a time, each with its share of the cores; or one, with all of them.",
    ),
    click.option(
        "--measure",
        metavar="FILE",
        help="Run these rows here a few times and go by what each node took: .npy, or .npz by "
        "input name.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Plan for this cluster, tcp://HOST:PORT, beside what its workers have measured.",
    ),
    click.option(
        "--batches",
        type=click.IntRange(min=1),
        help="Micro-batches that there are: of the schedule that is shown, 16 by default, and "
        "that --strategy auto decides for, by default eight a thread.",
    ),
)
"""What it is for."""
_RUN = (
    click.option(
        "--schedule",
        type=click.Choice(["async", "sync", "hybrid"]),
        help="How micro-batches follow one another; async where stages stay on workers, else "
        "Dask's.",
    ),
    click.option(
        "--in-flight",
        type=click.IntRange(min=1),
        help="Micro-batches between their first and their last stage at most; two for each stage.",
    ),
    click.option(
        "--worker-groups", metavar="N,N,...", help="The worker that each stage stays on: 0,1,0."
    ),
    click.option(
        "--allow-other-workers",
        is_flag=True,
        help="Idle workers may take stages of --worker-groups.",
    ),
)
"""How it would run."""
_SHOW = (
    click.option(
        "--output",
        type=click.Path(),
        help="Write it there: the picture as .svg, all of it as a page as .html.",
    ),
    click.option(
        "--diff",
        "rival",
        type=click.Choice(STRATEGY_NAMES),
        help="How the plan differs from what this strategy gives, with the options that it takes.",
    ),
    click.option(
        "--annotate",
        metavar="FILE",
        help="Write MODEL there, saying these stages itself, for --strategy from_annotations.",
    ),
)


def _plan_options(function: Callable[..., None]) -> Any:
    options = (*_CUT, *_KNOW, *_RUN, *_SHOW)
    return reduce(lambda decorated, option: option(decorated), reversed(options), function)


@click.command("plan")
@click.argument("model_path", metavar="MODEL")
@_plan_options
@common_options
@click.pass_context
@worded_for("plan")
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
    """How MODEL would be cut into stages: their cost, the edges and their bytes.

    MODEL is run for --measure only. The first plan of a host that weighs what nodes take finds out
    how fast its CPU is, in a tenth of a second; with --scheduler, what workers take to send
    something.
    """
    is_said = context.get_parameter_source("strategy") is not ParameterSource.DEFAULT
    asked = Asked(strategy=strategy if is_said else None, **options)
    asked.check()
    if output is not None:
        check_picture(output)
    if annotate is not None:
        _check_annotate(Path(annotate))
    common: Options = context.obj
    with contextlib.ExitStack() as stack:
        model, client = load(model_path), None
        if scheduler is not None:
            client = stack.enter_context(connect(scheduler, None, None, None, debug=common.debug))
        plan = asked.plan(model, client)
        rival = asked.rival_plan(model, plan, client)
        difference = None if rival is None else plan.diff(rival)
        if output is not None:
            plan.visualize(output)
        if annotate is not None:
            _write_annotated(plan, model_path, Path(annotate))
        batches = asked.batches or _BATCHES
        if common.as_json:
            click.echo(json.dumps(as_dict(plan, difference, batches=batches), indent=2))
            return
        click.echo(_explained(plan, batches))
    if difference is not None:
        click.echo(f"\nthe other is {asked.rival}\n{difference}")
    if output is not None:
        click.echo(f"\nwritten: {output}")
    if annotate is not None:
        click.echo(f"\nannotated model: {annotate}")


def _explained(plan: Plan, batches: int) -> str:
    hint = "plan(measure=rows)"
    return plan.explain(batches=batches).replace(hint, in_options(hint, "plan"), 1)


def _check_annotate(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder", "give --annotate the name of a file in it")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist", "make it first")


def _write_annotated(plan: Plan, model_path: str, path: Path) -> None:
    """The model as it is written, with the plan's stages; its external data stay where they are."""
    folder = path.absolute().parent
    model = plan.annotate(model_path)
    is_beside = not is_url(model_path) and Path(model_path).absolute().parent.samefile(folder)
    outside = [t.name for g in graphs_of(model) for t in g.initializer if is_external(t)]
    if outside and not is_beside:
        raise InputError(
            f"{len(outside)} tensors of {model_path} lie in files beside it, such as "
            f"{outside[0]!r}: a model in {folder} would not find them",
            "give --annotate a name in the folder of MODEL",
        )
    onnx.save(model, path)
