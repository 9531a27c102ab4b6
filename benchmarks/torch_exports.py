"""Exports of PyTorch by both exporters, run by every strategy and compared with ONNX Runtime.

    python benchmarks/torch_exports.py [--only resnet lstm] [--exporters dynamo trace] [--opsets 18]
        [--output benchmarks/results]

Needs torch and onnxscript, and tests a few models of transformers where that is installed. Each
model of `torch_models` is exported with open axes and without, at each opset, and run on numpy
arrays, on dask arrays in uneven chunks, with a batch size, and by each strategy. Reported is the
largest difference from a plain session of ONNX Runtime, relative to the largest magnitude. A graph
with open axes is given numbers of rows that it was not exported with; a graph without them is run
by the session in pieces of the exported number, the last one padded, and its result is compared
with the module's too. "refused" is an error of dask_onnx before any work.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import onnxruntime
from common import print_table, write_json

import dask_onnx as dx

try:
    import onnxscript  # noqa: F401 - torch.onnx needs it
    import torch
except ImportError as error:
    raise SystemExit(
        f"this benchmark needs {error.name}: pip install torch onnxscript [transformers]"
    ) from None

import torch_quantised_models  # noqa: F401 - adds its models to CASES
import torch_special_models  # noqa: F401 - adds its models to CASES
import torch_transformers_models
from torch_models import CASES, Case, Feeds

EXPORTED_ROWS = 2
OTHER_ROWS = (1, 5)
STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    "whole": {},
    "fused": {"n_stages": 3},
    "per_node": {},
    "branches": {},
    "pipeline": {"n_stages": 2},
    "auto": {},
}


@dataclass(frozen=True)
class Export:
    """One exported file."""

    name: str
    exporter: str
    is_open: bool
    opset: int
    path: Path | None
    """None if the export failed."""
    error: str = ""

    @property
    def label(self) -> str:
        sizes = "open" if self.is_open else "fixed"
        return f"{self.name} {self.exporter} {sizes} {self.opset}"


def export(name: str, case: Case, exporter: str, is_open: bool, opset: int, folder: Path) -> Export:
    """Return the export of a model, or the exporter's error."""
    torch.manual_seed(0)
    module = case.make().eval()
    feeds = case.feeds(EXPORTED_ROWS, np.random.default_rng(0))
    values = tuple(torch.from_numpy(np.asarray(value)) for value in feeds.values())
    path = folder / f"{name}-{exporter}-{is_open}-{opset}.onnx"
    options: dict[str, Any] = {
        "input_names": list(feeds),
        "output_names": list(case.outputs),
        "opset_version": opset,
        "dynamo": exporter == "dynamo",
        **case.options.get(exporter, {}),
    }
    if is_open and exporter == "dynamo":
        shapes = [
            dict.fromkeys(case.open_axes.get(each, {}), torch.export.Dim.DYNAMIC) for each in feeds
        ]
        is_variadic = isinstance(module, torch_transformers_models.Wrapped)
        options["dynamic_shapes"] = (tuple(shapes),) if is_variadic else tuple(shapes)
    elif is_open:
        options["dynamic_axes"] = {key: dict(axes) for key, axes in case.open_axes.items() if axes}
    given = torch.jit.script(module) if case.is_scripted else module
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(given, values, str(path), **options)
            if case.after is not None:
                case.after(str(path))
    except Exception as error:  # an exporter's own failure is a row of the table
        return Export(name, exporter, is_open, opset, None, f"{type(error).__name__}: {error}")
    return Export(name, exporter, is_open, opset, path)


def by_module(name: str, case: Case, feeds: Feeds) -> dict[str, np.ndarray]:
    """Return what the module itself gives."""
    torch.manual_seed(0)
    module = case.make().eval()
    with torch.no_grad():
        found = module(*(torch.from_numpy(np.asarray(value)) for value in feeds.values()))
    found = found if isinstance(found, tuple) else (found,)
    return {key: value.numpy() for key, value in zip(case.outputs, found, strict=True)}


def relative_difference(
    expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> float:
    """Return the largest difference relative to the largest magnitude; infinite for shapes."""
    worst = 0.0
    for name, array in expected.items():
        other = np.asarray(found[name])
        if other.shape != array.shape or other.dtype != array.dtype:
            return float("inf")
        if array.dtype.kind == "f":
            scale = float(np.abs(array).max(initial=1e-6))
            worst = max(worst, float(np.abs(array - other).max(initial=0)) / scale)
        elif not np.array_equal(array, other):
            return float("inf")
    return worst


def chunked(array: np.ndarray, axis: int | None) -> Any:
    """Return a dask array in uneven chunks along an axis; the array itself for None."""
    if axis is None:
        return array
    sizes = [1]
    while sum(sizes) < array.shape[axis]:
        sizes.append(min(sizes[-1] + 1, array.shape[axis] - sum(sizes)))
    chunks = tuple(tuple(sizes) if i == axis else -1 for i in range(array.ndim))
    return da.from_array(array, chunks=chunks)


def attempts(
    model: dx.Model, feeds: Feeds, axes: Mapping[str, int | None], outputs: Sequence[str]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the ways of running a request, by name."""
    for strategy, options in STRATEGIES.items():

        def by_plan(strategy: str = strategy, options: Mapping[str, Any] = options) -> Any:
            plan = model.plan(strategy, **options)
            return model.predict(feeds, outputs=outputs, plan=plan)

        yield strategy, by_plan
        if any(axis is not None for axis in axes.values()):

            def in_chunks(strategy: str = strategy, options: Mapping[str, Any] = options) -> Any:
                lazy = {name: chunked(value, axes.get(name)) for name, value in feeds.items()}
                plan = model.plan(strategy, **options)
                found = model.predict(lazy, outputs=outputs, plan=plan)
                return dict(zip(found, dask.compute(*found.values()), strict=True))

            yield f"{strategy}, chunks", in_chunks
    yield "batch_size=1", lambda: model.predict(feeds, outputs=outputs, batch_size=1)
    yield "batch_size=2", lambda: model.predict(feeds, outputs=outputs, batch_size=2)
    for axis in ("sequence", "heads"):

        def sharded(axis: str = axis) -> Any:
            shapes = {name: value.shape for name, value in feeds.items()}
            plan = model.plan(dx.Sharded(axis=axis, n=2), shapes=shapes)
            return model.predict(feeds, outputs=outputs, plan=plan)

        yield f"sharded by {axis}", sharded


def outcome(
    run: Callable[[], Any], expected: Mapping[str, np.ndarray], limit: float
) -> tuple[str, str]:
    """Return the outcome in a word, and the difference or the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = run()
    except (dx.InputError, dx.PlanError, dx.ModelError) as error:
        return "refused", str(error)
    except dx.StageError as error:
        return "failed", str(error)
    except Exception as error:  # a fault of dask_onnx: reported, and the others are still tried
        return "CRASH", f"{type(error).__name__}: {error}"
    difference = relative_difference(expected, found)
    return ("equal" if difference <= limit else "WRONG"), f"{difference:.1e}"


def in_pieces(session: onnxruntime.InferenceSession, feeds: Feeds, rows: int) -> list[np.ndarray]:
    """Return results of runs of the exported number of rows on axis 0, the last one filled up."""
    parts = []
    for start in range(0, rows, EXPORTED_ROWS):
        places = np.minimum(np.arange(start, start + EXPORTED_ROWS), rows - 1)
        parts.append(session.run(None, {name: value[places] for name, value in feeds.items()}))
    return [np.concatenate(each)[:rows] for each in zip(*parts, strict=True)]


def references(exported: Export, case: Case, rows: int) -> tuple[Feeds, dict[str, np.ndarray]]:
    """Return inputs for a number of rows, and the right results."""
    feeds = case.feeds(rows, np.random.default_rng(rows))
    session = onnxruntime.InferenceSession(str(exported.path))
    names = [each.name for each in session.get_outputs()]
    wanted = {each.name for each in session.get_inputs()}
    feeds = {name: value for name, value in feeds.items() if name in wanted}
    try:
        found = session.run(None, feeds)
    except Exception:  # whatever ONNX Runtime raises for these rows
        try:
            found = list(by_module(exported.name, case, feeds).values())
        except (RuntimeError, TypeError):  # the module itself takes the exported number only
            found = in_pieces(session, feeds, rows)
    return feeds, dict(zip(names, found, strict=True))


def compare(exported: Export, case: Case) -> Iterator[tuple[int, str, str, str]]:
    """Yield rows, way of running, outcome and reason for one export."""
    model = dx.load(str(exported.path))
    outputs = [spec.name for spec in model.outputs]
    for rows in (EXPORTED_ROWS, *OTHER_ROWS):
        feeds, expected = references(exported, case, rows)
        shapes = {name: value.shape for name, value in feeds.items()}
        axes = model._facts.batch_at(tuple(outputs), shapes).input_axes
        for way, run in attempts(model, feeds, axes, outputs):
            yield rows, way, *outcome(run, expected, case.limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(CASES), help="names of models")
    parser.add_argument("--exporters", nargs="*", default=["dynamo", "trace"])
    parser.add_argument("--opsets", nargs="*", type=int, default=[17, 18, 20])
    parser.add_argument("--verbose", action="store_true", help="print each reason")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    onnxruntime.set_default_logger_severity(4)
    torch.backends.mha.set_fastpath_enabled(False)  # the tracing exporter has no operator for it
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            case = CASES[name]()
            for exporter in arguments.exporters:
                if exporter not in case.exporters:
                    continue
                for is_open in (True, False):
                    for opset in arguments.opsets:
                        with redirect_stderr(io.StringIO()):
                            made = export(name, case, exporter, is_open, opset, Path(folder))
                        results.append(report(made, case, arguments.verbose))
    table = [[each["export"], *each["shown"]] for each in results]
    print_table(
        "Largest difference from ONNX Runtime",
        ["export", "equal", "wrong", "failed", "crashed", "refused", "difference", "why refused"],
        table,
    )
    if arguments.output is not None:
        write_json(arguments.output, "torch_exports", {"results": results})


def report(made: Export, case: Case, is_verbose: bool) -> dict[str, Any]:
    """Return the outcomes of one export; print them at once."""
    if made.path is None:
        shown = ["", "", "", "", "", "", f"not exported: {made.error.splitlines()[0][:100]}"]
        print(made.label, shown[-1], flush=True)
        return {"export": made.label, "shown": shown, "error": made.error}
    counts = {"equal": 0, "WRONG": 0, "failed": 0, "CRASH": 0, "refused": 0}
    worst, refusals, ways = 0.0, {}, []
    for rows, way, word, why in compare(made, case):
        counts[word] += 1
        ways.append({"rows": rows, "way": way, "outcome": word, "why": why})
        if word in ("equal", "WRONG"):
            worst = max(worst, float(why))
        else:
            refusals.setdefault(why.splitlines()[0], []).append(f"{way} {rows}")
        if word in ("WRONG", "failed", "CRASH") or (is_verbose and word == "refused"):
            print("   ", made.label, rows, way, word, why.splitlines()[0], flush=True)
    shown = [str(counts[key]) for key in ("equal", "WRONG", "failed", "CRASH", "refused")]
    why = "; ".join(f"{len(where)} x {reason[:90]}" for reason, where in refusals.items())
    print(made.label, counts, f"{worst:.1e}", flush=True)
    return {"export": made.label, "shown": [*shown, f"{worst:.1e}", why], "ways": ways}


if __name__ == "__main__":
    main()
