"""Claims about every value of random graphs, compared with runs."""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from axes_graphs import Maker, random_graph
from axes_layers import OPERATORS
from axes_truth import (
    CannotRunError,
    Runner,
    claims,
    faults_of_dependence,
    faults_of_rows,
)

from dask_onnx.analysis.axes.dependence import FREE
from dask_onnx.analysis.axes.propagate import propagate
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.row_candidates import Candidate
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.modelio.onnx_model import load_onnx

log = logging.getLogger(__name__)
"""Logger of the tallies, shown by ``--log-cli-level=INFO``."""

GRAPHS = 300
"""Graphs of the default run; the slow run takes the number in environment variable AXES_GRAPHS."""

Feeds = dict[str, Any]


@dataclass
class Tally:
    """Counts of graphs, values and claims."""

    graphs: int = 0
    """Graphs that run."""
    values: int = 0
    """Outputs of these graphs."""
    rows: int = 0
    """Claims that pieces of the inputs give pieces of a value."""
    free: int = 0
    """Claims that a value is the same for any number of positions."""
    elements: Counter[str] = field(default_factory=Counter)
    """Claims, at fixed sizes, about the positions that an element reads, by kind."""
    missed: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Values that runs find independent and the analysis does not, by operator, kind and reason.

    Counted where the node that produces the value is the one that breaks the dependence.
    """
    wrong: list[str] = field(default_factory=list)
    """Descriptions of claims that a run contradicts."""


def test_runs_confirm_claims_about_random_graphs():
    tally = check_graphs(range(GRAPHS))
    log.info("%s", tally)
    assert tally.wrong == []
    assert tally.rows > 500
    assert tally.free > 50
    assert sum(tally.elements.values()) > 3000
    assert tally.missed.total() < tally.rows / 20, tally.missed.most_common(10)


@pytest.mark.slow
@pytest.mark.timeout(20_000)
def test_runs_confirm_claims_about_many_random_graphs():
    count = int(os.environ.get("AXES_GRAPHS", "10000"))
    tally = check_graphs(range(GRAPHS, GRAPHS + count))
    log.info("%s", tally)
    assert tally.wrong == []
    assert tally.rows > count
    assert tally.missed.total() < tally.rows / 20, tally.missed.most_common(10)


def check_graphs(seeds: range) -> Tally:
    """Return the tally of the random graphs of some seeds."""
    tally = Tally()
    for seed in seeds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reference divides by zero
            _check_graph(seed, random_graph(seed, OPERATORS), tally)
    return tally


def _check_graph(seed: int, graph: Maker, tally: Tally) -> None:
    model = graph.model()
    if not model.graph.output:
        return
    try:
        runner = Runner(model, any_kernel=False)
        samples = _samples(graph, runner)
    except CannotRunError:
        return  # ORT's shape inference rejects the whole graph
    facts = GraphFacts(load_onnx(graph.model(leaves_only=True)))
    tally.graphs += 1
    tally.values += len(runner.outputs)
    _check_rows(f"graph {seed}", graph, runner, facts, samples, tally)
    for name, array in samples[0].items():
        for axis in range(array.ndim):
            if array.shape[axis] > 1 and graph.inputs.get(name) != axis:
                _check_elements(f"graph {seed}", runner, facts, samples[0], {name: axis}, tally)
    _check_elements(f"graph {seed}", runner, facts, samples[-1], graph.inputs, tally)


def _samples(graph: Maker, runner: Runner) -> list[Feeds]:
    """Return the inputs that the graph was generated with, and others if it accepts them.

    Raises
    ------
    CannotRunError
        ORT does not run the graph, although it has run each node.
    """
    first = {value.name: value.arrays[0] for value in graph.values if value.name in graph.inputs}
    rng = np.random.default_rng(0)
    second = {
        name: (array + rng.integers(-4, 5, array.shape) / 4).astype(np.float32)
        for name, array in first.items()
    }
    runner(first)
    try:
        runner(second)
    except CannotRunError:
        return [first]
    return [first, second]


def _check_rows(
    where: str,
    graph: Maker,
    runner: Runner,
    facts: GraphFacts,
    samples: list[Feeds],
    tally: Tally,
) -> None:
    claimed, blocked = claims(facts, runner.outputs, graph.inputs)
    tally.rows += sum(axis is not None for axis in claimed.values())
    tally.free += sum(axis is None for axis in claimed.values())
    likely = {v.name: v.open_axes[0] for v in graph.values if len(v.open_axes) == 1}
    asked = {**{name: likely[name] for name in blocked if name in likely}, **claimed}
    faults: dict[str, str] = {}
    for feeds in samples:
        faults |= faults_of_rows(runner, feeds, graph.inputs, asked)
    for name, text in faults.items():
        if name in claimed:
            tally.wrong.append(f"{where}: {name} on axis {claimed[name]}: {text}")
    made = {name: node.name for node in facts.nodes for name in node.outputs}
    for name in asked.keys() - faults.keys() - claimed.keys():
        if blocked[name].node == made.get(name):
            tally.missed[blocked[name].op_type, blocked[name].kind, blocked[name].how] += 1


def _check_elements(
    where: str, runner: Runner, facts: GraphFacts, feeds: Feeds, seeds: Candidate, tally: Tally
) -> None:
    specs = infer_shapes(facts, {name: array.shape for name, array in feeds.items()})
    deps = propagate(facts, specs, seeds)
    held = {n: d for n in runner.outputs if not (d := deps.get(n, FREE)).is_broken}
    tally.elements.update(dep.kind.label for dep in held.values())
    for name, text in faults_of_dependence(runner, feeds, seeds, held).items():
        tally.wrong.append(f"{where}: axis {dict(seeds)} in {name} {held[name]}: {text}")


def graph_text(seed: int) -> str:
    """Return the graph of a seed as text, to inspect a wrong claim."""
    return onnx.printer.to_text(random_graph(seed, OPERATORS).model())
