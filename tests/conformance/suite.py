"""Run ONNX's backend test suite through dask_onnx and alone, and tabulate the failures.

    python tests/conformance/suite.py --output tests/conformance

Every case goes through `dask_onnx.backend`: load, plan, lower, and a Dask scheduler, with ONNX's
own runner, data and tolerances. For comparison, ONNX Runtime alone and ONNX's reference evaluator
alone run the same cases with the same inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx.backend.base import Backend, BackendRep
from onnx.backend.test.runner import Runner
from onnx.reference import ReferenceEvaluator

from dask_onnx.backend import DaskOnnxBackend
from dask_onnx.runtime.extended_types import is_extended_type, run_with_ort_values

STRATEGIES = ("whole", "fused", "per_node")
DRAWN = "the expected values were drawn at random, and so are ours"
CONTESTANTS = (*STRATEGIES, "onnxruntime alone", "reference alone")

Failures = dict[str, str]
"""Reason of each failure, in one line, by case."""


class MeasuringRunner(Runner):
    """ONNX's runner, with failure messages that state how much values differ."""

    @classmethod
    def assert_similar_outputs(
        cls, ref_outputs: Any, outputs: Any, rtol: float, atol: float, model_dir: Any = None
    ) -> None:
        try:
            super().assert_similar_outputs(ref_outputs, outputs, rtol, atol, model_dir)
        except AssertionError as error:
            raise AssertionError(_difference(ref_outputs, outputs, rtol, atol)) from error


def _difference(expected: Sequence[Any], got: Sequence[Any], rtol: float, atol: float) -> str:
    for number, (a, b) in enumerate(zip(expected, got, strict=False)):
        if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
            if type(a) is not type(b):
                return f"output {number} is {type(b).__name__}, not {type(a).__name__}"
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"output {number} is {b.dtype} {b.shape}, not {a.dtype} {a.shape}"
        if a.dtype == object or a.dtype.kind not in "fiuc":
            continue
        away = np.abs(a - b)
        over = away > atol + rtol * np.abs(a)
        if over.any():
            return (
                f"output {number} differs by {np.nanmax(away):.1e} on values to "
                f"{np.nanmax(np.abs(a)):.1e} (allowed: {rtol:.0e} of the value and {atol:.0e}), "
                f"{int(over.sum())} of {a.size} elements"
            )
    return "other values"


def through(strategy: str, scheduler: str) -> type[Backend]:
    """Return dask_onnx's backend with a strategy; "fused" cuts graphs into at most three stages."""

    class Ours(DaskOnnxBackend):
        @classmethod
        def is_compatible(cls, *_: Any, **__: Any) -> bool:
            return True  # ONNX's runner silently skips incompatible cases

        @classmethod
        def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> Any:
            options = {}
            if strategy == "fused":
                options["n_stages"] = _stages(model)
            return super().prepare(model, device, strategy=strategy, scheduler=scheduler, **options)

    return Ours


def _stages(model: Any) -> int:
    import dask_onnx as dx
    from dask_onnx.core.errors import PlanError

    loaded = dx.load(model)
    for stages in (3, 2):
        try:
            loaded.plan("fused", n_stages=stages)
        except PlanError:
            continue
        return stages
    return 1


class OnnxruntimeAlone(Backend):
    """ONNX Runtime on the whole model, with inputs of every type that it accepts."""

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> BackendRep:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        data = model.SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

        class Prepared(BackendRep):
            def run(self, inputs: Any, **kwargs: Any) -> Any:
                values = session.get_inputs()
                feeds = {v.name: _as_fed(x) for v, x in zip(values, inputs, strict=False)}
                names = [value.name for value in session.get_outputs()]
                if any(is_extended_type(v.type) for v in (*values, *session.get_outputs())):
                    return run_with_ort_values(session, onnxruntime.OrtValue, names, feeds, None)
                return session.run(names, feeds)

        return Prepared()

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device == "CPU"


def _as_fed(value: Any) -> Any:
    return value if isinstance(value, list | dict) or value is None else np.asarray(value)


class ReferenceAlone(Backend):
    """ONNX's reference evaluator on the whole model."""

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> BackendRep:
        evaluator = ReferenceEvaluator(model)

        class Prepared(BackendRep):
            def run(self, inputs: Any, **kwargs: Any) -> Any:
                return evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=False)))

        return Prepared()

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device == "CPU"


def contestant(name: str, scheduler: str = "sync") -> type[Backend]:
    if name in STRATEGIES:
        return through(name, scheduler)
    return OnnxruntimeAlone if name == "onnxruntime alone" else ReferenceAlone


def cases(backend: type[Backend]) -> Iterator[tuple[str, str, Any]]:
    """Yield kind, name and test function of every case for the CPU."""
    for kind, tests in MeasuringRunner(backend)._test_items.items():
        for name, item in sorted(tests.items()):
            if name.endswith("_cpu"):
                yield kind.removesuffix("Model"), name.removesuffix("_cpu"), item.func


def run_all(backend: type[Backend]) -> tuple[Failures, Counter[str]]:
    """Return the failures by case, and the number of cases of each kind."""
    failures: Failures = {}
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as home:
        os.environ["ONNX_HOME"] = home  # ONNX's runner writes the data of real models there
        for kind, name, test in cases(backend):
            counts[kind] += 1
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                try:
                    test(None)
                except Exception as error:  # every failure is a line of the table
                    failures[f"{kind}/{name}"] = _one_line(error)
    return failures, counts


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    is_plain = isinstance(error, AssertionError)
    return (text if is_plain else f"{type(error).__name__}: {text}")[:300]


def table(results: dict[str, Failures], counts: Counter[str]) -> str:
    """Return the results as Markdown."""
    total = sum(counts.values())
    lines = [
        "# ONNX's backend test suite",
        "",
        f"`make conformance`: the {total} cases for the CPU of onnx {onnx.__version__}, with "
        f"onnxruntime {onnxruntime.__version__}, each through load, plan, lower and a Dask "
        "scheduler.",
        "",
        "| | passed | failed | " + " | ".join(counts) + " |",
        "| --- | --- | --- |" + " --- |" * len(counts),
    ]
    for name, failures in results.items():
        by_kind = Counter(case.partition("/")[0] for case in failures)
        cells = [f"{count - by_kind[kind]} of {count}" for kind, count in counts.items()]
        lines.append(
            f"| {name} | {total - len(failures)} | {len(failures)} | {' | '.join(cells)} |"
        )
    ours: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in STRATEGIES:
        for case, reason in results.get(name, {}).items():
            ours[case, DRAWN if "bernoulli" in case else reason].append(name)
    lines += ["", "## What fails through dask_onnx", "", "| case | under | reason |"]
    lines.append("| --- | --- | --- |")
    for (case, reason), names in sorted(ours.items()):
        under = "all" if len(names) == len(STRATEGIES) else ", ".join(names)
        lines.append(f"| {case} | {under} | {reason.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", choices=CONTESTANTS)
    parser.add_argument(
        "--scheduler", default="sync", help="Dask scheduler: sync, threads or processes"
    )
    arguments = parser.parse_args()
    results: dict[str, Failures] = {}
    counts: Counter[str] = Counter()
    for name in [arguments.only] if arguments.only else CONTESTANTS:
        began = time.perf_counter()
        results[name], counts = run_all(contestant(name, arguments.scheduler))
        failed, total = len(results[name]), sum(counts.values())
        seconds = time.perf_counter() - began
        print(f"{name}: {total - failed} of {total} passed in {seconds:.0f} s", flush=True)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "CONFORMANCE.md").write_text(table(results, counts))
        pinned = {name: sorted(results[name]) for name in STRATEGIES if name in results}
        (arguments.output / "failures.json").write_text(json.dumps(pinned, indent=2) + "\n")
    else:
        print(table(results, counts))


if __name__ == "__main__":
    main()
