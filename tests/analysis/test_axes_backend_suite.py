"""Claims about axes compared with runs, for operator cases of ONNX and ONNX Runtime.

The cases are those of ONNX's backend test suite, and `contrib_cases` for com.microsoft.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from axes_truth import (
    CannotRunError,
    Runner,
    claims,
    count,
    faults_of_dependence,
    faults_of_rows,
    picked,
    with_open_axes,
)
from contrib_cases import RUN
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from dask_onnx.analysis.axes.dependence import FREE
from dask_onnx.analysis.axes.propagate import propagate
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.randomness import random_nodes
from dask_onnx.analysis.row_candidates import Candidate
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.core.errors import DaskOnnxError
from dask_onnx.modelio.onnx_model import load_onnx

log = logging.getLogger(__name__)
"""Logger of the tallies, shown by ``--log-cli-level=INFO``."""

EVERY = 16
"""Step of the default run through the cases; the slow run takes all others."""
FEWEST_POSITIONS = 5
"""Number of positions up to which shorter samples are repeated."""
_OPERAND_ELEMENTS = 16
"""Elements of the largest integer input that is taken for shapes or axes."""


@dataclass
class Tally:
    """Counts of cases, questions and claims."""

    cases: Counter[str] = field(default_factory=Counter)
    """Cases by outcome: "run", "random", "types" or "cannot run"."""
    questions: int = 0
    """Pairs of a model and a source axis that were analysed."""
    rows: int = 0
    """Claims that pieces of the inputs give pieces of an output."""
    elements: int = 0
    """Claims, at fixed sizes, about the positions that an element reads."""
    wrong: list[str] = field(default_factory=list)
    """Descriptions of claims that a run contradicts."""


@cache
def cases() -> list[TestCase]:
    """Return the operator cases of ONNX's backend suite, sorted by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite computes infinities on purpose
        found = load_model_tests(kind="node") + load_model_tests(kind="simple")
    return sorted(found, key=lambda case: case.name)


@pytest.mark.timeout(600)
def test_runs_confirm_claims_about_operator_cases():
    tally = check_cases(cases()[::EVERY])
    log.info("%s", tally)
    assert tally.wrong == []
    assert tally.rows > 250
    assert tally.elements > 250
    assert tally.cases["run"] > 80


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_runs_confirm_claims_about_all_other_operator_cases():
    tally = check_cases([case for i, case in enumerate(cases()) if i % EVERY])
    log.info("%s", tally)
    assert tally.wrong == []
    assert tally.rows > 4000
    assert tally.elements > 4000
    assert tally.cases["run"] > 1400


def test_runs_confirm_claims_about_operators_of_onnx_runtime():
    tally, rng = Tally(), np.random.default_rng(0)
    for case in RUN:
        feeds = case.feeds({"B": 4, "T": 3, "P": 5, "W": 8})
        for name, array in feeds.items():
            if array.dtype in (np.int8, np.uint8):
                feeds[name] = rng.integers(0, 9, array.shape).astype(array.dtype)
        tally.cases[_check_model(str(case), case.model(), feeds, tally)] += 1
    log.info("%s", tally)
    assert tally.wrong == []
    assert tally.rows > 150
    assert tally.elements > 150
    assert tally.cases["run"] > 70


def check_cases(chosen: list[TestCase]) -> Tally:
    """Return the tally of some cases."""
    tally = Tally()
    for case in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tally.cases[_check_case(case, tally)] += 1
    return tally


def _check_case(case: TestCase, tally: Tally) -> str:
    model = onnx.load(f"{case.model_dir}/model.onnx") if case.model is None else case.model
    feeds = _feeds(case, model)
    return "types" if feeds is None else _check_model(case.name, model, feeds, tally)


def _check_model(name: str, model: onnx.ModelProto, feeds: dict[str, Any], tally: Tally) -> str:
    """Check the claims about every axis of a model; return the outcome for `Tally.cases`."""
    try:
        runner = Runner(with_open_axes(_any_size(model), {}, {}))
        once, twice = runner(feeds), runner(feeds)
    except CannotRunError:
        return "cannot run"
    if any(not _equal(once[name], twice[name]) for name in once) or _is_random(model):
        return "random"
    types = {value.name: value.type for value in model.graph.input}
    tensors = {name: v for name, v in feeds.items() if types[name].HasField("tensor_type")}
    for seeds in candidates(tensors):
        for frozen in _frozen(feeds, seeds):
            _check_axis(name, model, runner, feeds, seeds, frozen, tally)
    return "run"


def _is_random(model: onnx.ModelProto) -> bool:
    facts = GraphFacts(load_onnx(model))
    return bool(random_nodes(facts, facts.outputs)[0])


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray) and first.dtype.kind == "f":
        return np.array_equal(first, second, equal_nan=True)
    return str(first) == str(second)


def _feeds(case: TestCase, model: onnx.ModelProto) -> dict[str, Any] | None:
    """Return the inputs of a case by name; None if numpy lacks a type."""
    if case.data_sets is None:
        return None
    names = [value.name for value in model.graph.input]
    given = case.data_sets[0][0]
    if any(isinstance(array, onnx.TensorProto) or array is None for array in given):
        return None
    return {
        name: array if isinstance(array, list) else np.asarray(array)
        for name, array in zip(names, given, strict=False)
    }


def _any_size(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with all sizes of its inputs unknown."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for value in made.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return made


def candidates(feeds: dict[str, Any]) -> Iterator[Candidate]:
    """Return source axes to check.

    These are each axis of each input, each axis that all inputs share when counted from the first
    or the last, and the axes of each common size.
    """
    tensors = {
        name: array.shape
        for name, array in feeds.items()
        if isinstance(array, np.ndarray) and array.ndim
    }
    found: list[dict[str, int]] = []
    for name, shape in tensors.items():
        found += [{name: axis} for axis, size in enumerate(shape) if size > 1]
    ranks = [len(shape) for shape in tensors.values()]
    for place in range(-max(ranks, default=0), max(ranks, default=0)):
        found.append(
            {
                name: place % len(shape)
                for name, shape in tensors.items()
                if -len(shape) <= place < len(shape) and shape[place] > 1
            }
        )
    for size in sorted({size for shape in tensors.values() for size in shape if size > 1}):
        found.append({n: shape.index(size) for n, shape in tensors.items() if size in shape})
    seen: list[dict[str, int]] = []
    for seeds in found:
        sizes = {tensors[name][axis] for name, axis in seeds.items()}
        if len(sizes) == 1 and seeds not in seen:
            seen.append(seeds)
            yield seeds


def _frozen(feeds: dict[str, Any], seeds: Candidate) -> list[tuple[str, ...]]:
    """Return sets of inputs to turn into constants.

    These are the inputs that hold shapes, and all inputs that carry no positions.
    """
    others = [n for n, v in feeds.items() if n not in seeds and isinstance(v, np.ndarray)]
    operands = [
        name
        for name in others
        if feeds[name].dtype.kind in "iu"
        and feeds[name].ndim < 2
        and feeds[name].size <= _OPERAND_ELEMENTS
    ]
    return [tuple(operands)] if operands == others else [tuple(operands), tuple(others)]


def _check_axis(
    name: str,
    model: onnx.ModelProto,
    runner: Runner,
    feeds: dict[str, Any],
    seeds: Candidate,
    frozen: tuple[str, ...],
    tally: Tally,
) -> None:
    made = with_open_axes(model, feeds, seeds, frozen)
    try:
        facts = GraphFacts(load_onnx(made))
    except DaskOnnxError:
        return  # a rejected model makes no claims
    tally.questions += 1
    tensors = {
        v.name for v in model.graph.output if v.type.WhichOneof("value") in (None, "tensor_type")
    }
    outputs = [n for n in facts.outputs if n in tensors]
    claimed, _ = claims(facts, outputs, seeds)
    where = f"{name}, axes {dict(seeds)}, constants {frozen}"
    if claimed:
        tally.rows += len(claimed)
        faults = faults_of_rows(runner, feeds, seeds, claimed)
        positions = count(feeds, seeds)
        if positions < FEWEST_POSITIONS and not faults:
            more = picked(feeds, seeds, [i % positions for i in range(FEWEST_POSITIONS)])
            faults = faults_of_rows(runner, more, seeds, claimed)
        tally.wrong += [f"{where}: {output}: {text}" for output, text in faults.items()]
    arrays = {n: v for n, v in feeds.items() if n in facts.inputs and isinstance(v, np.ndarray)}
    specs = infer_shapes(facts, {name: array.shape for name, array in arrays.items()})
    deps = propagate(facts, specs, seeds)
    of_outputs = {n: deps.get(n, FREE) for n in outputs if not deps.get(n, FREE).is_broken}
    tally.elements += len(of_outputs)
    faults = faults_of_dependence(runner, feeds, seeds, of_outputs)
    tally.wrong += [
        f"{where}: {output} {of_outputs[output]}: {text}" for output, text in faults.items()
    ]
