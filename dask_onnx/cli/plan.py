"""``dask-onnx plan``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import onnx
from dask.utils import parse_bytes

from dask_onnx.cli import Options, common_options
from dask_onnx.cli.parameters import (
    STRATEGY_NAMES,
    configuration_option,
    n_stages_option,
    named_strategy,
    parse_shapes,
    shape_option,
    strategy_option,
)
from dask_onnx.errors import InputError
from dask_onnx.files import is_url
from dask_onnx.loading import load
from dask_onnx.plan import Plan
from dask_onnx.planning.recipe import at_values, options_of
from dask_onnx.planning.schedule import Mode
from dask_onnx.weights import graphs_of, is_external


@click.command("plan")
@click.argument("model_path", metavar="MODEL")
@strategy_option
@configuration_option
@n_stages_option
@click.option(
    "--min-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="What a stage should compute at least, in predicted seconds; for --strategy fused.",
)
@click.option(
    "--stage-memory", help="Weights and activations of a stage at most, 2GiB; for pipeline."
)
@click.option("--cut-at", metavar="VALUE,...", help="Cut where these have been made.")
@click.option(
    "--schedule",
    type=click.Choice(["async", "sync", "hybrid"]),
    help="How micro-batches follow one another; async where stages stay on workers, else Dask's.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(min=1),
    help="Micro-batches between their first and their last stage at most; two for each stage.",
)
@click.option(
    "--batches",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Micro-batches of the schedule that is shown.",
)
@shape_option
@click.option(
    "--output",
    type=click.Path(),
    help="Write it there: the picture as .svg, all of it as a page as .html.",
)
@click.option(
    "--diff",
    "rival",
    type=click.Choice(STRATEGY_NAMES),
    help="How the plan differs from what this strategy gives, with the options that it takes.",
)
@click.option(
    "--annotate",
    "annotated",
    metavar="FILE",
    help="Write MODEL there, saying these stages itself, for --strategy from_annotations.",
)
@common_options
@click.pass_obj
def command(
    options: Options,
    model_path: str,
    strategy: str,
    configuration: str | None,
    n_stages: int | None,
    min_seconds: float | None,
    stage_memory: str | None,
    cut_at: str | None,
    schedule: Mode | None,
    in_flight: int | None,
    batches: int,
    shapes: Sequence[str],
    output: str | None,
    rival: str | None,
    annotated: str | None,
) -> None:
    """How MODEL would be cut into stages: their cost, the edges and their bytes. Runs nothing."""
    if output is not None:
        _check_output(Path(output))
    model = load(model_path)
    bound = parse_shapes(shapes)
    given: dict[str, Any] = {
        "n_stages": n_stages,
        "min_seconds": min_seconds,
        "memory_limit": _bytes(stage_memory),
    }
    plan = model.plan(
        named_strategy(strategy, configuration) if cut_at is None else at_values(cut_at.split(",")),
        shapes=bound,
        **given,
    )
    if schedule is not None or in_flight is not None:
        plan = plan.with_schedule(schedule or "async", in_flight=in_flight)
    difference = None
    if rival is not None:
        taken = [] if rival == "auto" else options_of(rival)
        kept = {name: value for name, value in given.items() if name in taken}
        difference = plan.diff(model.plan(rival, shapes=bound, **kept))
    if output is not None:
        plan.visualize(output)
    if annotated is not None:
        _write_annotated(plan, model_path, Path(annotated))
    if options.as_json:
        click.echo(json.dumps(as_dict(plan, difference, batches=batches), indent=2))
        return
    click.echo(plan.explain(batches=batches))
    if difference is not None:
        click.echo(f"\nthe other is {rival}\n{difference}")
    if output is not None:
        click.echo(f"\nwritten: {output}")
    if annotated is not None:
        click.echo(f"\nannotated model: {annotated}")


def _bytes(text: str | None) -> int | None:
    try:
        return None if text is None else parse_bytes(text)
    except ValueError:
        raise InputError(f"--stage-memory is {text!r}", "give it like 2GiB or 800MB") from None


def _check_output(path: Path) -> None:
    if path.suffix not in (".svg", ".html"):
        raise InputError(
            f"the output {path} is no .svg and no .html",
            "give --output a name that ends in .svg or .html",
        )
    if not path.absolute().parent.is_dir():
        raise InputError(f"the folder {path.absolute().parent} does not exist", "make it first")


def _write_annotated(plan: Plan, model_path: str, path: Path) -> None:
    """The model as it is written, with the plan's stages; its external data stay where they are."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist", "make it first")
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


def as_dict(plan: Plan, difference: str | None = None, *, batches: int = 16) -> dict[str, Any]:
    """Stages and edges, schedule and memory, for machines; what there is of lanes, a verdict and a
    difference."""
    more: dict[str, Any] = {}
    if len(plan.stages) > 1:
        course = plan.timeline(batches=batches)
        more["schedule"] = {
            "how": None if plan.bounds is None else plan.bounds.describe(len(plan.stages)),
            "batches": batches,
            "workers": course.workers,
            "predicted_seconds": course.seconds,
            "bubble": course.bubble,
        }
    more["memory"] = [asdict(each) | {"total": each.total} for each in plan.memory()]
    if plan.placement is not None:
        more["lanes"] = list(plan.placement.lanes)
        more["allow_other_workers"] = plan.placement.allow_other_workers
    if plan.verdict is not None:
        more["verdict"] = plan.verdict.sentence
        more["alternatives"] = [asdict(each) for each in plan.verdict.alternatives]
    if difference is not None:
        more["difference"] = difference.splitlines()
    return {
        "strategy": plan.recipe.strategy,
        "predicted_seconds": plan.stage_graph.seconds,
        "stages": [
            {
                "label": stage.label,
                "kernel": stage.kernel,
                "nodes": len(stage.nodes),
                "inputs": [spec.name for spec in stage.inputs],
                "outputs": [spec.name for spec in stage.outputs],
                **asdict(stage.cost),
            }
            for stage in plan.stages
        ],
        "edges": [
            {
                "value": edge.value,
                "producer": edge.producer,
                "consumer": edge.consumer,
                "bytes": edge.bytes,
            }
            for edge in plan.stage_graph.edges
        ],
        **more,
    }
