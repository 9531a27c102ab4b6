"""The command ``dask-onnx inspect``: show what a model consists of, and its cost."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click

from dask_onnx.analysis.cuts import Cut
from dask_onnx.analysis.lossy_fusions import LossyFusions, lossy_fusions
from dask_onnx.analysis.report import Analysis
from dask_onnx.api.loading import load
from dask_onnx.api.model import Model
from dask_onnx.api.verify import random_sample, verify_axes
from dask_onnx.cli import Options, common_options
from dask_onnx.cli.error_report import in_options
from dask_onnx.cli.parameters import (
    is_untrusted,
    parse_rows,
    parse_shapes,
    rows_option,
    shape_option,
    trusted_option,
)
from dask_onnx.cli.plan_command import command as plan_command
from dask_onnx.cli.printing import echo
from dask_onnx.core.formatting import (
    format_bytes,
    format_flops,
    format_seconds,
    format_shapes,
    printable,
)
from dask_onnx.core.specs import TensorSpec, dtype_name
from dask_onnx.diagnostics.plan_text import BASIS_IN_WORDS, MEASURE
from dask_onnx.diagnostics.summary import Basis, speed_basis

_NAMES_SHOWN = 6
_REGIONS_SHOWN = 3
_CUTS_SHOWN = 3
_LEAST_SHARE = 0.1
"""Share of the time that lies on both sides of a cut that is listed."""


@click.command("inspect")
@click.argument("model_path", metavar="MODEL")
@shape_option
@rows_option
@trusted_option
@click.option(
    "--verify",
    is_flag=True,
    help="Run MODEL on random inputs, whole and in pieces, and compare with the facts shown.",
)
@common_options
@click.pass_obj
def command(
    options: Options, model_path: str, shapes: Sequence[str], rows: str | None, verify: bool
) -> None:
    """Show the inputs, outputs, operators and cost of MODEL. Nothing is run without --verify.

    A model that this host has not seen is first tried in a subprocess: see --trusted.
    """
    model = load(model_path, rows=parse_rows(rows), untrusted=is_untrusted(options))
    bound = parse_shapes(shapes)
    analysis, axes = model.analyse(bound), model.axes(bound)
    verified = verify_axes(model, random_sample(model, bound)) if verify else None
    if options.as_json:
        found = as_dict(model, analysis) | {"axes": [asdict(fact) for fact in axes]}
        if verified is not None:
            found["verified"] = [asdict(check) for check in verified.checks]
        echo(json.dumps(found, indent=2))
    else:
        _print(model, analysis)
        echo()
        echo(str(axes))
        if verified is not None:
            echo()
            echo(str(verified))
    if verified is not None and not verified.is_right:
        raise click.exceptions.Exit(1)


def as_dict(model: Model, analysis: Analysis) -> dict[str, Any]:
    """Return all facts about a model, for JSON."""
    return {
        "name": model.name,
        "token": model.token,
        "opsets": {domain or "ai.onnx": version for domain, version in model.opsets.items()},
        "inputs": [_spec_dict(spec) for spec in model.inputs],
        "outputs": [_spec_dict(spec) for spec in model.outputs],
        "nodes": sum(analysis.op_histogram.values()),
        "op_histogram": dict(analysis.op_histogram),
        "parameters": analysis.parameters,
        "parameter_bytes": analysis.parameter_bytes,
        "shapes": analysis.shapes,
        "shapes_assumed": analysis.is_assumed,
        "flops": analysis.flops,
        "activation_bytes": analysis.activation_bytes,
        "predicted_seconds": analysis.predicted_seconds,
        "basis": BASIS_IN_WORDS[speed_basis()],
        "basis_kind": speed_basis(),
        "plan_basis_kind": _plan_basis(model, analysis),
        "parallel_branches": analysis.parallel_branches,
        "parallelism": analysis.parallelism,
        "longest_path": list(analysis.longest_path),
        "critical_path": list(analysis.critical_path),
        "critical_seconds": analysis.critical_seconds,
        "regions": [{"seconds": list(region.seconds)} for region in analysis.regions],
        "cuts": [asdict(cut) for cut in analysis.cuts],
        "batch_axes": dict(analysis.batch.input_axes),
        "fixed_batch": analysis.batch.fixed_rows,
        "rows": analysis.rows,
        "random_nodes": list(analysis.batch.random),
        "lossy_fusions": asdict(_lossy(model)),
        "batch_dependent_nodes": list(analysis.batch.dependent),
    }


def _spec_dict(spec: TensorSpec) -> dict[str, Any]:
    dtype = spec.kind if spec.dtype is None else dtype_name(spec.dtype)
    return {"name": spec.name, "dtype": dtype, "shape": spec.shape}


def _print(model: Model, analysis: Analysis) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for title, value in _rows(model, analysis):
        echo(
            textwrap.fill(
                printable(value),
                width=max(width, 60),
                initial_indent=f"{title:<17}",
                subsequent_indent=" " * 17,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )


def _rows(model: Model, analysis: Analysis) -> list[tuple[str, str]]:
    opsets = ", ".join(
        f"{domain or 'ai.onnx'} {version}" for domain, version in model.opsets.items()
    )
    ops = ", ".join(f"{op} {count}" for op, count in analysis.op_histogram.items())
    assumed = "; open dimensions assumed, set them with --shape" if analysis.is_assumed else ""
    path = analysis.longest_path
    batch = analysis.batch
    return [
        ("model", f"{model.name}, {sum(analysis.op_histogram.values())} nodes"),
        *(("input", f"{spec}{_batch_note(batch.input_axes[spec.name])}") for spec in model.inputs),
        *(("output", str(spec)) for spec in model.outputs),
        ("rows", analysis.rows),
        ("opsets", opsets),
        ("operators", ops),
        ("parameters", f"{analysis.parameters:,} ({format_bytes(analysis.parameter_bytes)})"),
        ("for", f"{format_shapes(analysis.shapes)}{assumed}"),
        (
            "compute",
            f"{format_flops(analysis.flops)}, {format_bytes(analysis.activation_bytes)} moved, "
            f"{format_seconds(analysis.predicted_seconds)} predicted on one core, "
            f"{_basis_in_words(model, analysis)}",
        ),
        (
            "branches",
            f"{analysis.parallel_branches} at most side by side; all work over the critical path "
            f"{analysis.parallelism:.1f}",
        ),
        ("regions", _regions(analysis)),
        (
            "critical path",
            f"{format_seconds(analysis.critical_seconds)}, {len(analysis.critical_path)} nodes: "
            f"{_shorten(analysis.critical_path)}",
        ),
        ("cheapest cuts", _cuts(analysis.cuts)),
        ("longest path", f"{len(path)} nodes: {_shorten(path)}"),
        ("random", _shorten(batch.random) or "none"),
        *_lossy_lines(model),
        ("batch-dependent", _shorten(batch.dependent) or "none"),
    ]


def _lossy(model: Model) -> LossyFusions:
    return lossy_fusions(model.facts, model.facts.outputs)


def _lossy_lines(model: Model) -> Iterator[tuple[str, str]]:
    """Yield a line for quantised nodes whose results depend on where a plan cuts, if any."""
    found = _lossy(model)
    names = (*found.products, *found.steps, *found.repeated)
    if names:
        yield "lossy fusions", f"plans may differ by a quantisation error at {_shorten(names)}"


def _plan_basis(model: Model, analysis: Analysis) -> Basis:
    """Return the source of the seconds that plans predict; the analysis goes by FLOPs and bytes."""
    return model.basis(analysis.shapes)


def _basis_in_words(model: Model, analysis: Analysis) -> str:
    basis, of_plans = speed_basis(), _plan_basis(model, analysis)
    words = BASIS_IN_WORDS[basis]
    if of_plans != basis:
        return f"{words}; `dask-onnx plan` goes {BASIS_IN_WORDS[of_plans]}"
    if basis == "defaults":
        return f"{words}; dask-onnx plan {in_options(MEASURE, plan_command)} measures it"
    return words


def _regions(analysis: Analysis) -> str:
    """Describe the parallel regions that take most of the time."""
    total = analysis.predicted_seconds or 1.0
    found = sorted(
        (region for region in analysis.regions if region.is_parallel),
        key=lambda region: -sum(region.seconds),
    )
    if not found:
        return "none: nodes run one after the other"
    shown = [
        f"{len(region.parts)} branches, {sum(region.seconds) / total:.0%} of the time, the longest "
        f"{max(region.seconds) / total:.0%}"
        for region in found[:_REGIONS_SHOWN]
    ]
    more = f"; and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return "; ".join(shown) + more


def _cuts(cuts: Sequence[Cut]) -> str:
    """Describe the cuts that the fewest bytes cross, of those with work on both sides."""
    inner = [cut for cut in cuts if _LEAST_SHARE <= cut.share <= 1 - _LEAST_SHARE]
    if not inner:
        return "none with work on both sides"
    best = sorted(inner, key=lambda cut: (cut.bytes, cut.values))[:_CUTS_SHOWN]
    shown = [
        f"at {cut.share:.0%} of the time, after {cut.after}: {format_bytes(cut.bytes)} in "
        + (", ".join(cut.names) if cut.names else f"{cut.values} values")
        for cut in best
    ]
    return f"{'; '.join(shown)} (of {len(cuts)})"


def _batch_note(axis: int | None) -> str:
    return ", no batch axis: given once" if axis is None else f", batch axis {axis}"


def _shorten(names: Sequence[str]) -> str:
    if len(names) <= _NAMES_SHOWN:
        return ", ".join(names)
    half = _NAMES_SHOWN // 2
    left_out = len(names) - 2 * half
    return f"{', '.join(names[:half])}, … {left_out} more …, {', '.join(names[-half:])}"
