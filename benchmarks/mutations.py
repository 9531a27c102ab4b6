"""Damaged models through load, analysis, every plan, a prediction and `inspect`.

    python benchmarks/mutations.py --count 10000 --output benchmarks/results

Each mutation runs in a process of its own, whose time and memory are measured. Its end is one of

- result: it was loaded, and ran or was refused by an error of dask_onnx later on;
- error: a `DaskOnnxError` when it was loaded;
- raw: any other exception;
- crash: a signal ended the process;
- hang: it took longer than `--seconds`.

What ONNX Runtime or onnx itself crash or hang on is loaded again with ``untrusted=True``, which has
to end in an error. `UnexpectedModelError`, the boundary behind the checks, is counted apart.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import dask
import numpy as np
import onnxruntime  # noqa: F401 - imported once, before the forks
from common import print_table, write_json
from mutated_models import WEIGHTS_BYTES, WEIGHTS_FILE, mutation

import dask_onnx as dx
from dask_onnx.cli import Options
from dask_onnx.cli.inspect_command import command as inspect_command
from dask_onnx.core.errors import DaskOnnxError
from dask_onnx.planning.partition import STRATEGIES

_MEMORY_BYTES = 4 * 2**30
_MOST_ELEMENTS = 100_000


@dataclass(frozen=True)
class End:
    """Outcome of one mutation."""

    seed: int
    name: str
    kind: str
    """"result", "error", "raw", "crash" or "hang"."""
    step: str
    """Step at which it ended."""
    error: str
    """Class of the error, or name of the signal."""
    message: str
    unexpected: int
    """Errors that came through the boundary for what no check foresaw."""
    seconds: float
    peak_bytes: int
    untrusted: str = ""
    """The error of the same model with ``untrusted=True``, after a crash or hang."""


def _feeds(model: dx.Model) -> dict[str, Any]:
    feeds = {}
    for spec in model.inputs:
        shape = tuple(min(d, 64) if isinstance(d, int) else 3 for d in spec.shape or ())
        if np.prod([float(d) for d in shape]) > _MOST_ELEMENTS or len(shape) > 32:
            shape = shape[:1]
        dtype = spec.dtype if spec.dtype is not None else np.dtype(np.float32)
        feeds[spec.name] = (
            np.full(shape, "a", object) if dtype.kind == "O" else np.ones(shape, dtype)
        )
    return feeds


def run_all(path: str, *, untrusted: bool, ends: dict[str, Any]) -> None:
    """Take a model through every step; later steps may be refused."""
    ends["step"] = "load"
    try:
        model = dx.load(path, untrusted=True) if untrusted else dx.load(path)
    except DaskOnnxError as error:
        ends.update(kind="error", error=type(error).__name__, message=str(error)[:300])
        ends["unexpected"] += type(error).__name__ == "UnexpectedModelError"
        return
    steps: dict[str, Any] = {
        "analysis": lambda: str(model.analysis),
        "inspect": lambda: _inspect(path),
    }
    for name in ["auto", *(each for each in STRATEGIES if each != "at_values")]:
        steps[f"plan {name}"] = lambda name=name: model.plan(name).explain()
    steps["predict"] = lambda: model.predict(_feeds(model))
    steps["predict per node"] = lambda: model.predict(_feeds(model), plan=model.plan("per_node"))
    for step, act in steps.items():
        ends["step"] = step
        try:
            act()
        except DaskOnnxError as error:
            if type(error).__name__ == "UnexpectedModelError":
                ends["unexpected"] += 1
                ends.update(error=type(error).__name__, message=f"{step}: {str(error)[:300]}")


def _inspect(path: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        context = click.Context(inspect_command, obj=Options())
        with context:
            context.invoke(
                inspect_command.callback, model_path=path, shapes=(), rows=None, verify=False
            )


def _child(path: str, report: int, *, untrusted: bool) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 * _MEMORY_BYTES, 2 * _MEMORY_BYTES))
    ends: dict[str, Any] = {"kind": "result", "error": "", "message": "", "unexpected": 0}
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        with dask.config.set(scheduler="synchronous"):
            run_all(path, untrusted=untrusted, ends=ends)
    except BaseException as error:  # what must not be
        where = traceback.extract_tb(error.__traceback__)
        place = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in where[:-6:-1])
        ends.update(kind="raw", error=type(error).__name__, message=f"{error!s:.200} [{place}]")
    os.write(report, json.dumps(ends).encode())
    os._exit(0)


def run_one(seed: int, name: str, data: bytes, folder: Path, seconds: float) -> End:
    """Return how a model ends; one that ends the process, or never, is also tried untrusted."""
    end = run_model(seed, name, data, folder, seconds)
    if end.kind in ("crash", "hang"):
        tried = run_model(seed, name, data, folder, 3 * seconds, untrusted=True)
        end = replace(end, untrusted=tried.error or tried.kind)
    return end


def run_model(
    seed: int, name: str, data: bytes, folder: Path, seconds: float, *, untrusted: bool = False
) -> End:
    """Return how a model ends, in a process of its own."""
    path = folder / f"{seed}.onnx"
    path.write_bytes(data)
    reading, writing = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reading)
        os.setsid()
        _child(str(path), writing, untrusted=untrusted)
    os.close(writing)
    is_late = False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - start > seconds:
            is_late = True
            os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            break
        time.sleep(0.002)
    taken = time.monotonic() - start
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    path.unlink()
    ends: dict[str, Any] = {"error": "", "message": "", "unexpected": 0, "step": ""}
    if said:
        ends |= json.loads(said)
    elif is_late:
        ends |= {"kind": "hang"}
    else:
        ends |= {"kind": "crash", "error": str(os.waitstatus_to_exitcode(status))}
    return End(seed, name, seconds=taken, peak_bytes=usage.ru_maxrss * 1024, **ends)


@contextlib.contextmanager
def prepared_folder(seconds: float) -> Iterator[Path]:
    """Make a folder for models with the external data that they expect, and set the limits."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / WEIGHTS_FILE).write_bytes(bytes(WEIGHTS_BYTES))
        (folder / "sub").mkdir()
        os.mkfifo(folder / "fifo")
        settings = {
            "onnx.store.directory": str(folder / "store"),
            "onnx.plan.calibrate": False,
            "onnx.untrusted.seconds": seconds,
            # Each mutation has a process of its own, so that commands need not try it in another.
            "onnx.untrusted.command-line": False,
        }
        with dask.config.set(settings):
            yield folder


def run(models: Iterable[tuple[int, str, bytes]], seconds: float) -> list[End]:
    """Return the ends of models that are given by number, name and bytes; Ctrl-C stops early."""
    for each in dx.__all__:
        getattr(dx, each)  # imported once here, rather than by each fork
    ends = []
    with prepared_folder(seconds) as folder, contextlib.suppress(KeyboardInterrupt):
        for model in models:
            ends.append(run_one(*model, folder, seconds))  # noqa: PERF401 - kept on Ctrl-C
    return ends


def _files(folder: Path | None) -> Iterator[tuple[int, str, bytes]]:
    """Yield number, name and bytes of each model in a folder."""
    paths = [] if folder is None else sorted(folder.glob("*.onnx"))
    for number, path in enumerate(paths):
        yield -1 - number, path.stem, path.read_bytes()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000, help="number of mutations")
    parser.add_argument("--first", type=int, default=0, help="seed of the first mutation")
    parser.add_argument("--models", type=Path, help="folder of models to run before")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--json", action="store_true", help="print the ends as JSON")
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.count)
    models = itertools.chain(_files(options.models), ((seed, *mutation(seed)) for seed in seeds))
    ends = run(models, options.seconds)
    if options.json:
        print(json.dumps([asdict(end) for end in ends]))
        return 0
    kinds = Counter(end.kind for end in ends)
    print_table(
        "Ends of mutations",
        ("end", "mutations"),
        [(kind, str(n)) for kind, n in kinds.most_common()],
    )
    bad = [end for end in ends if end.kind in ("raw", "crash", "hang")]
    for end in bad:
        print(
            f"{end.kind} {end.seed} {end.name} | {end.step}: {end.error} {end.message} "
            f"| untrusted: {end.untrusted}"
        )
    for end in ends:
        if end.unexpected:
            print(f"unforeseen {end.seed} {end.name} | {end.step}: {end.message}")
    results = {
        "kinds": dict(kinds),
        "unexpected": sum(end.unexpected for end in ends),
        "worst_seconds": max(end.seconds for end in ends),
        "worst_bytes": max(end.peak_bytes for end in ends),
        "bad": [asdict(end) for end in bad],
    }
    print({key: value for key, value in results.items() if key != "bad"})
    if options.output:
        write_json(options.output, "mutations", results)
    return any(end.kind == "raw" or end.untrusted != "ModelError" for end in bad)


if __name__ == "__main__":
    sys.exit(main())
