"""Throughput of a prediction over a data set, as a share of what the machine can do.

    python benchmarks/throughput.py --assets .cache/assets --output benchmarks/results

Contestants, in alternating rounds, on the same rows, chunks and rows a run:

1. limit: two bare processes with one-thread ORT sessions, no Dask; warm
2. ours: `model.predict` on a dask.array, two worker processes of one thread; warm, and cold
3. notebook: `map_blocks` with a function in `__main__` that caches a session in a global
4. module: the same function in a module that the workers import

All read the same file by path inside the tasks, and return the maximum of each row.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import onnx
import onnxruntime
from common import (
    file_array,
    median_interval,
    print_table,
    read_rows,
    reduced,
    row_maximum,
    spread,
    timed,
    write_json,
)
from distributed import Client, LocalCluster
from imported_session import forget, one_thread_session, predict_block, run_rows
from onnx import numpy_helper
from PIL import Image

import dask_onnx as dx

_CHUNKS = 40
"""Chunks of a data set: twenty for each worker, so that both finish at about the same time."""
_session = None


def predict_in_main(block: Any, model: str, per_run: int) -> Any:
    """Predict as code in a notebook does: the function and its global are pickled by value."""
    global _session
    if _session is None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        _session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = _session.get_inputs()[0].name
    starts = range(0, len(block), per_run)
    return np.concatenate([_session.run(None, {name: block[s : s + per_run]})[0] for s in starts])


@dataclass(frozen=True)
class Work:
    """Model with its data, and how they are divided."""

    name: str
    model: str
    data: str
    rows: int
    chunk: int
    per_run: int


def squeezenet(folder: Path, *, is_open: bool = False) -> str:
    """Write SqueezeNet as in the onnx package, with random weights; return its path.

    The model takes one row, or any number of rows if `is_open`.
    """
    light = Path(onnx.__file__).parent / "backend/test/data/light/light_squeezenet.onnx"
    model, rng = onnx.load(light), np.random.default_rng(0)
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                constants[node.output[0]] = attribute.t
    for tensor in constants.values():
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim:
            scale = np.sqrt(2 / max(1, np.prod(values.shape[1:])))  # He et al., 2015
            made = rng.standard_normal(values.shape) * scale
            tensor.CopyFrom(numpy_helper.from_array(made.astype(np.float32), tensor.name))
    if is_open:
        del model.graph.value_info[:]
        inputs = {t.name for t in model.graph.initializer}
        for value in [*model.graph.input, *model.graph.output]:
            if value.name not in inputs:
                value.type.tensor_type.shape.dim[0].dim_param = "N"
    path = folder / "squeezenet.onnx"
    onnx.save(model, path)
    return str(path)


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, 3, 224, 224)).astype(np.float32)


def windows(assets: Path, rows: int) -> np.ndarray:
    """Return windows of 320 x 320 pixels at random places of two page images, as PP-OCR input."""
    rng, pages = np.random.default_rng(2), []
    for name in ("page.png", "text.png"):
        with Image.open(assets / name) as image:
            page = image.convert("RGB")
        pages.append(np.asarray(page.resize((page.width * 3, page.height * 3))))
    out = np.empty((rows, 3, 320, 320), np.float32)
    for row in out:
        page = pages[rng.integers(2)]
        y, x = (rng.integers(size - 320 + 1) for size in page.shape[:2])
        row[...] = ((page[y : y + 320, x : x + 320] / 255 - 0.5) / 0.5).transpose(2, 0, 1)
    return out


def bare_process(connection: Connection, work: Work, first: int) -> None:
    """Process half of the chunks each time that True arrives."""
    session = one_thread_session(work.model)
    run_rows(session, read_rows(work.data, 0, work.per_run), work.per_run)
    connection.send("ready")
    while connection.recv():
        results = []
        for start in range(first * work.chunk, work.rows, 2 * work.chunk):
            block = read_rows(work.data, start, min(start + work.chunk, work.rows))
            results.append((start, row_maximum(run_rows(session, block, work.per_run))))
        connection.send(results)


@contextmanager
def bare_pair(work: Work) -> Iterator[Callable[[], np.ndarray]]:
    """Start two processes; yield a function that has them do the work once."""
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    for first in range(2):
        here, there = context.Pipe()
        process = context.Process(target=bare_process, args=(there, work, first), daemon=True)
        process.start()
        assert here.recv() == "ready"
        ends.append(here)
        processes.append(process)

    def run() -> np.ndarray:
        for end in ends:
            end.send(True)
        parts = dict(pair for end in ends for pair in end.recv())
        return np.concatenate([parts[start] for start in sorted(parts)])

    yield run
    for end, process in zip(ends, processes, strict=True):
        end.send(False)
        process.join()


def contestants(
    work: Work, client: Client, limit: Callable[[], np.ndarray]
) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return by name a preparation, which is not timed, and the function that is timed."""
    model = dx.load(work.model)
    per_run = None if model.analysis.batch.fixed_rows else work.per_run

    def ours() -> Any:
        return reduced(
            model.predict(file_array(work.data, work.chunk), batch_size=per_run)
        ).compute()

    def by_hand(function: Callable[..., Any]) -> Callable[[], Any]:
        def run() -> Any:
            lazy = file_array(work.data, work.chunk).map_blocks(
                function, work.model, work.per_run, dtype=np.float32, meta=_meta(model)
            )
            return _reduced_by_hand(lazy).compute()

        return run

    def cold() -> None:
        client.run(_clear_sessions)

    def nothing() -> None:
        pass

    return {
        "limit": (nothing, limit),
        "ours, warm": (nothing, ours),
        "ours, cold": (cold, ours),
        "notebook": (nothing, by_hand(predict_in_main)),
        "module": (nothing, by_hand(predict_block)),
    }


def _meta(model: dx.Model) -> np.ndarray:
    return np.empty((0,) * (model.outputs[0].rank or 1), np.float32)


def _reduced_by_hand(lazy: da.Array) -> da.Array:
    """Return the maximum of each row of a result whose declared shape may be wrong.

    `map_blocks` declares the shape of its input; only the number of rows is used here.
    """
    return lazy.map_blocks(
        row_maximum,
        drop_axis=tuple(range(1, lazy.ndim)),
        dtype=np.float32,
        meta=np.empty((0,), np.float32),
    )


def _clear_sessions() -> None:
    from dask_onnx.runtime.session_cache import SESSION_CACHE

    SESSION_CACHE.clear()


def measure(work: Work, client: Client, rounds: int) -> dict[str, Any]:
    with bare_pair(work) as limit:
        runners = contestants(work, client, limit)
        expected = limit()
        for name, (_, run) in runners.items():
            difference = float(np.abs(run() - expected).max())
            assert difference < 1e-5, f"{name} differs by {difference}"
        seconds: dict[str, list[float]] = {name: [] for name in runners}
        order = list(runners)
        for number in range(rounds):
            random.Random(number).shuffle(order)
            for name in order:
                before, run = runners[name]
                before()
                seconds[name].append(timed(run))
        client.run(forget)
    return {
        "rows": work.rows,
        "chunk": work.chunk,
        "rows_per_run": work.per_run,
        "rounds": rounds,
        "contestants": {name: summarise(name, seconds, work.rows) for name in runners},
    }


def summarise(name: str, seconds: dict[str, list[float]], rows: int) -> dict[str, Any]:
    ratios = [limit / own for limit, own in zip(seconds["limit"], seconds[name], strict=True)]
    median, low, high = median_interval(ratios)
    return {
        "seconds": spread(seconds[name]),
        "rows_per_second": round(rows / float(np.median(seconds[name])), 2),
        "of_limit": round(median, 4),
        "of_limit_95": [round(low, 4), round(high, 4)],
        "all_seconds": [round(value, 3) for value in seconds[name]],
    }


def calibrated_rows(model: str, sample: np.ndarray, per_run: int, seconds: float) -> int:
    """Return how many rows two processes finish in about `seconds`; a whole number of chunks."""
    session = one_thread_session(model)
    run_rows(session, sample, per_run)
    each = timed(lambda: run_rows(session, sample, per_run)) / len(sample)
    chunk = max(per_run, round(2 * seconds / each / _CHUNKS / per_run) * per_run)
    return chunk * _CHUNKS


def prepare(
    name: str, assets: Path, folder: Path, seconds: float, *, is_open: bool = False
) -> Work:
    if name == "squeezenet":
        model, make = squeezenet(folder, is_open=is_open), images
    else:
        model, make = str(assets / "det.onnx"), lambda rows: windows(assets, rows)
    rows = calibrated_rows(model, make(8), 1, seconds)
    data = str(folder / f"{name}.npy")
    np.save(data, make(rows))
    return Work(name, model, data, rows, rows // _CHUNKS, 1)


def main(assets: Path, output: Path, rounds: int, seconds: float, names: list[str]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"onnx.store.directory": f"{folder}/store"}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        for name in names:
            result = measure(prepare(name, assets, Path(folder), seconds), client, rounds)
            show(name, result)
            print(write_json(output, f"throughput_{name}", {name: result}))


def show(name: str, result: dict[str, Any]) -> None:
    rows = [
        [
            contestant,
            f"{r['seconds']['median']:.2f}",
            f"{r['seconds']['min']:.2f}-{r['seconds']['max']:.2f}",
            f"{r['rows_per_second']:.1f}",
            f"{r['of_limit']:.3f}",
            f"{r['of_limit_95'][0]:.3f}-{r['of_limit_95'][1]:.3f}",
        ]
        for contestant, r in result["contestants"].items()
    ]
    title = (
        f"{name}: {result['rows']} rows in chunks of {result['chunk']}, {result['rounds']} rounds"
    )
    header = ["", "seconds", "min-max", "rows/s", "of the limit", "95 %"]
    print_table(title, header, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=30, help="approximate seconds of the limit"
    )
    parser.add_argument("--only", choices=["squeezenet", "det"], help="run a single workload")
    parser.add_argument(
        "--quick", action="store_true", help="3 s and 3 rounds, to check that the script works"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 3, 3
    main(
        arguments.assets,
        arguments.output,
        arguments.rounds,
        arguments.seconds,
        [arguments.only] if arguments.only else ["squeezenet", "det"],
    )
