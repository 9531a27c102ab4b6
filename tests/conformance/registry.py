"""Load and run every operator of ONNX Runtime's schema registry, and tabulate the results.

    python tests/conformance/registry.py --output tests/conformance

Each version of each operator, in all domains, is a model of one node (see `registry_nodes`). It is
loaded by dask_onnx, analysed, planned whole and into nodes, and run where ONNX Runtime runs it.
Results must be those of ONNX Runtime alone. An operator that ONNX Runtime refuses must
be refused with a reason.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import onnx
import onnxruntime
from registry_nodes import OneNode, Version, known_cases, smallest_node, versions

import dask_onnx as dx

STRATEGIES = ("whole", "per_node")
TOLERANCE = {"onnxruntime": 3e-4, "reference": 1e-3}
"""Largest difference of floating-point numbers, absolute and relative, by the kernel of the node.

ONNX Runtime's own numbers differ with the number of threads (DynamicQuantizeLSTM). Nodes on the
reference are those whose kernel in ONNX Runtime is known to be inexact.
"""


@dataclass(frozen=True)
class Outcome:
    """Outcome of one version of an operator."""

    operator: str
    """Domain, name and version."""
    onnxruntime: str
    """"runs", "refuses to run" or "refuses to build"."""
    ours: str
    """"runs", "loads" or "refuses"."""
    kernels: tuple[str, ...]
    """Kernels in the plan by nodes."""
    reason: str
    """Reason why it does not run."""
    fault: str
    """Difference from ONNX Runtime; empty if there is none."""


def outcome(version: Version, node: OneNode) -> Outcome:
    """Return what becomes of a version of an operator, with ONNX Runtime and with dask_onnx."""
    runs = node.outputs is not None
    alone = "runs" if runs else f"refuses to {'run' if 'runs not' in node.reason else 'build'}"
    kernels: tuple[str, ...] = ()
    try:
        model = dx.load(node.model)
        _ = model.analysis, model.axes()
        plans = {strategy: model.plan(strategy) for strategy in STRATEGIES}
        kernels = tuple(stage.kernel for stage in plans["per_node"].stages)
        model.plan("auto")
    except dx.DaskOnnxError as error:
        reason = error.cause
        fault = "" if not runs and error.next_step else "refused, though ONNX Runtime runs it"
        return Outcome(str(version), alone, "refuses", kernels, reason, fault)
    except Exception as error:  # a fault of dask_onnx: a line of the table
        return Outcome(
            str(version), alone, "refuses", (), repr(error), "an error of another package"
        )
    if not runs:
        return Outcome(str(version), alone, "loads", kernels, node.reason, "")
    faults = [_difference(model, plans[s], node, kernels) for s in STRATEGIES]
    return Outcome(str(version), alone, "runs", kernels, "", "; ".join(filter(None, faults)))


def _difference(model: Any, plan: Any, node: OneNode, kernels: Sequence[str]) -> str:
    """Return the first difference of a plan's results from ONNX Runtime's; empty without one."""
    feeds = {name: node.feeds[name] for name in (spec.name for spec in model.inputs)}
    try:
        with np.errstate(all="ignore"):
            found = model.predict(feeds, plan=plan) if feeds else model.predict({}, plan=plan)
    except Exception as error:  # every failure is a difference
        return f"{plan.recipe.strategy}: {' '.join(str(error).split())}"[:300]
    names = [value.name for value in node.model.graph.output]
    found = found if isinstance(found, dict) else {names[0]: found}
    is_random = bool(model.analysis.batch.random)
    tolerance = TOLERANCE["reference" if "reference" in kernels else "onnxruntime"]
    for name, expected in zip(names, node.outputs or (), strict=True):
        if not _same(found[name], expected, np.inf if is_random else tolerance):
            return f"{plan.recipe.strategy}: output {name} differs ({', '.join(kernels)})"
    return ""


def _same(found: Any, expected: Any, tolerance: float) -> bool:
    """Return whether types and shapes are equal, and numbers up to a tolerance."""
    if isinstance(expected, list):
        if isinstance(found, np.ndarray) and expected and isinstance(expected[0], dict):
            # Of ZipMap, arrays get the tensor before it.
            expected = [np.array(list(row.values()), found.dtype) for row in expected]
        found = list(found)
        pairs = zip(found, expected, strict=False)
        return len(found) == len(expected) and all(_same(a, b, tolerance) for a, b in pairs)
    if isinstance(expected, dict):
        is_map = isinstance(found, dict) and found.keys() == expected.keys()
        return is_map and all(_same(found[key], expected[key], tolerance) for key in found)
    if expected is None or found is None:
        return found is expected
    a, b = np.asarray(found), np.asarray(expected)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind not in "fcV" or tolerance == np.inf:
        return tolerance == np.inf or bool(np.array_equal(a, b))
    return bool(np.allclose(a.astype("f8"), b.astype("f8"), tolerance, tolerance, equal_nan=True))


def run_all(chosen: Sequence[Version]) -> list[Outcome]:
    """Return the outcome of versions of operators."""
    cases = known_cases()
    with warnings.catch_warnings(), dask.config.set(scheduler="sync"):
        warnings.simplefilter("ignore")
        return [outcome(version, smallest_node(version, cases)) for version in chosen]


def newest(found: Sequence[Version]) -> list[Version]:
    """Return the newest version of each operator that ONNX Runtime has not removed."""
    kept = {(v.domain, v.name): v for v in found if not v.schema.deprecated}
    return list(kept.values())


def pinned_form(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """Return what ONNX Runtime and dask_onnx do, by operator."""
    return {each.operator: [each.onnxruntime, each.ours] for each in outcomes}


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the results as Markdown."""
    names = {each.operator.rpartition("-")[0] for each in outcomes}
    counts = Counter((each.onnxruntime, each.ours) for each in outcomes)
    lines = [
        "# Operators of ONNX Runtime's registry",
        "",
        f"`make registry`: the {len(outcomes)} versions of the {len(names)} operators that "
        f"onnxruntime {onnxruntime.__version__} registers in all domains, with onnx "
        f"{onnx.__version__}, each as a model of one node. On a CPU.",
        "",
        "| ONNX Runtime alone | dask_onnx | versions |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {a} | {b} | {n} |" for (a, b), n in sorted(counts.items(), reverse=True)]
    lines += ["", "## Where they differ", "", "| operator | difference |", "| --- | --- |"]
    lines += [
        f"| {o.operator} | {_cell(o.fault)}: {_cell(o.reason)} |" for o in outcomes if o.fault
    ]
    lines += [
        "",
        "## Refused by both, or loaded and not run",
        "",
        "| operator | dask_onnx | reason |",
    ]
    lines.append("| --- | --- | --- |")
    lines += [
        f"| {o.operator} | {o.ours} | {_cell(o.reason)} |"
        for o in outcomes
        if o.ours != "runs" and not o.fault
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:160]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    began = time.perf_counter()
    outcomes = run_all(versions())
    counts = Counter(each.ours for each in outcomes)
    faults = sum(1 for each in outcomes if each.fault)
    print(f"{dict(counts)}, {faults} differ, in {time.perf_counter() - began:.0f} s")
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "REGISTRY.md").write_text(table(outcomes))
        lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in pinned_form(outcomes).items()]
        (arguments.output / "registry.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    else:
        print(table(outcomes))


if __name__ == "__main__":
    main()
