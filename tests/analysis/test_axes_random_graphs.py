"""Random graphs: what is claimed of every value, held against runs of it."""

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
from dask_onnx.analysis.batch import Candidate
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.modelio.onnx_model import load_onnx

log = logging.getLogger(__name__)
"""What was looked at: ``--log-cli-level=INFO`` shows it."""

GRAPHS = 300
"""In the usual run; the slow one looks at as many as the environment's AXES_GRAPHS says."""

Feeds = dict[str, Any]


@dataclass
class Tally:
    """What was looked at."""

    graphs: int = 0
    values: int = 0
    rows: int = 0
    """Claims that pieces of the inputs give pieces of a value."""
    free: int = 0
    """Claims that a value is the same for any number of positions."""
    elements: Counter[str] = field(default_factory=Counter)
    """Claims, at fixed sizes, of what an element of a value reads, by kind."""
    missed: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Values that every run finds independent and the algebra does not, where a node breaks what
    its inputs had: operator, kind, how."""
    wrong: list[str] = field(default_factory=list)


def test_no_claim_of_random_graphs_is_wrong():
    tally = looked_at(range(GRAPHS))
    log.info("%s", tally)
    assert tally.wrong == []
    assert tally.rows > 500
    assert tally.free > 50
    assert sum(tally.elements.values()) > 3000
    assert tally.missed.total() < tally.rows / 20, tally.missed.most_common(10)


@pytest.mark.slow
@pytest.mark.timeout(20_000)
def test_no_claim_of_many_random_graphs_is_wrong():
    count = int(os.environ.get("AXES_GRAPHS", "10000"))
    tally = looked_at(range(GRAPHS, GRAPHS + count))
    log.info("%s", tally)
    assert tally.wrong == []
    assert tally.rows > count
    assert tally.missed.total() < tally.rows / 20, tally.missed.most_common(10)


def looked_at(seeds: range) -> Tally:
    """Return what the claims of the graphs of some seeds are worth."""
    tally = Tally()
    for seed in seeds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reference divides by zero
            _look_at(seed, random_graph(seed, OPERATORS), tally)
    return tally


def _look_at(seed: int, graph: Maker, tally: Tally) -> None:
    model = graph.model()
    if not model.graph.output:
        return
    try:
        runner = Runner(model, any_kernel=False)
        samples = _samples(graph, runner)
    except CannotRunError:
        return  # what ORT infers of the whole graph is in the way
    facts = GraphFacts(load_onnx(graph.model(leaves_only=True)))
    tally.graphs += 1
    tally.values += len(runner.outputs)
    _hold_rows(f"graph {seed}", graph, runner, facts, samples, tally)
    for name, array in samples[0].items():
        for axis in range(array.ndim):
            if array.shape[axis] > 1 and graph.inputs.get(name) != axis:
                _hold_elements(f"graph {seed}", runner, facts, samples[0], {name: axis}, tally)
    _hold_elements(f"graph {seed}", runner, facts, samples[-1], graph.inputs, tally)


def _samples(graph: Maker, runner: Runner) -> list[Feeds]:
    """The feeds that the graph was made with, and others of the same range if it takes them.

    Raises
    ------
    CannotRunError
        ORT does not run the graph, although it has run its nodes.
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


def _hold_rows(
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


def _hold_elements(
    where: str, runner: Runner, facts: GraphFacts, feeds: Feeds, seeds: Candidate, tally: Tally
) -> None:
    specs = infer_shapes(facts, {name: array.shape for name, array in feeds.items()})
    deps = propagate(facts, specs, seeds)
    held = {n: d for n in runner.outputs if not (d := deps.get(n, FREE)).is_broken}
    tally.elements.update(dep.kind.label for dep in held.values())
    for name, text in faults_of_dependence(runner, feeds, seeds, held).items():
        tally.wrong.append(f"{where}: axis {dict(seeds)} in {name} {held[name]}: {text}")


def drawn(seed: int) -> str:
    """Return the graph of a seed as text, for looking at a wrong claim."""
    return onnx.printer.to_text(random_graph(seed, OPERATORS).model())
