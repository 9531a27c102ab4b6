"""Costs that dask_onnx adds: planning, lowering, size of graphs, latency of one request, imports.

Also prepared requests against a bare `client.submit`, and many small chunks on a cluster against
`map_blocks` with a cached session.

python benchmarks/overhead.py --output benchmarks/results
python benchmarks/overhead.py --output benchmarks/results --only-prepared
python benchmarks/overhead.py --output benchmarks/results --only-chunks --chunks 1000 10000 50000
"""

from __future__ import annotations

import argparse
import gc
import pickle
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.config
import numpy as np
import onnx
import onnxruntime
from common import alternate, median_interval, print_table, spread, timed, write_json
from distributed import Client, LocalCluster
from imported_session import predict_block
from onnx import TensorProto, helper, numpy_helper

import dask_onnx as dx

_NODES = (100, 300, 1000, 3000, 10_000)
_CHUNKS = (10, 100, 1000, 10_000)
_WEIGHTS = (10_000, 1_000_000, 25_000_000)
_REPEATS = 3
_REQUESTS = 400
_IMPORTS = 10
_SMALL_CHUNKS = (1000, 3000)
_ROUNDS = 5
_WORKERS = 2


def chain(nodes: int) -> onnx.ModelProto:
    """Return x (N, 4) through `nodes` cheap nodes, one in ten of which reads an older value too."""
    made, last = [], "x"
    for i in range(nodes - 1):
        if i % 10 == 9:
            made.append(helper.make_node("Add", [last, f"v{i - 5}"], [f"v{i}"]))
        else:
            made.append(helper.make_node(("Relu", "Neg", "Abs")[i % 3], [last], [f"v{i}"]))
        last = f"v{i}"
    made.append(helper.make_node("Identity", [last], ["y"]))
    return finished(made, [])


def heavy(parameters: int) -> onnx.ModelProto:
    """Return the mean of x (N, 4) times a matrix of `parameters` elements."""
    matrix = np.random.default_rng(0).standard_normal((4, parameters // 4)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("ReduceMean", ["h"], ["y"], axes=[1]),
    ]
    return finished(nodes, [numpy_helper.from_array(matrix, "w")])


def finished(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "synthetic",
        [value("x", TensorProto.FLOAT, ["N", 4])],
        [value("y", TensorProto.FLOAT, ["N", None])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def best(function: Callable[[], Any]) -> float:
    """Return the seconds of the shortest of a few runs, the one least disturbed by other work."""
    gc.collect()
    return min(timed(function) for _ in range(_REPEATS))


def slope(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Return the exponent of a power law through the points: 1 if linear, less with fixed costs."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def lazy_input(chunks: int) -> da.Array:
    return da.zeros((chunks, 4), chunks=(1, 4), dtype=np.float32)


def task_bytes(lazy: da.Array) -> float:
    """Return bytes a task of the whole graph, pickled as the client sends it."""
    graph = dict(lazy.__dask_graph__())
    return len(pickle.dumps(graph)) / len(graph)


def by_nodes(sizes: tuple[int, ...]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for nodes in sizes:
        source = chain(nodes)
        model = dx.load(source)
        row: dict[str, float] = {"load": best(lambda source=source: dx.load(source))}
        for strategy, options in (("whole", {}), ("fused", {"n_stages": 20}), ("per_node", {})):
            plan = model.plan(strategy, **options)
            row[f"plan {strategy}"] = best(lambda s=strategy, o=options, m=model: m.plan(s, **o))
            x = lazy_input(2)
            row[f"lower {strategy}"] = best(lambda m=model, p=plan, x=x: m.predict(x, plan=p))
            row[f"bytes {strategy}"] = task_bytes(model.predict(x, plan=plan))
        rows[str(nodes)] = row
    timings = [name for name in rows[str(sizes[0])] if not name.startswith("bytes")]
    large = sizes[1:]  # fixed costs dominate the smallest size
    slopes = {name: slope(large, [rows[str(n)][name] for n in large]) for name in timings}
    return {"rows": rows, "slope": slopes}


def by_chunks(sizes: tuple[int, ...]) -> dict[str, Any]:
    model = dx.load(chain(100))
    rows: dict[str, Any] = {}
    for chunks in sizes:
        row: dict[str, float] = {}
        for strategy, options in (("whole", {}), ("fused", {"n_stages": 4})):
            plan = model.plan(strategy, **options)
            x = lazy_input(chunks)

            def build(x: da.Array = x, plan: dx.Plan = plan) -> dict[Any, Any]:
                return dict(model.predict(x, plan=plan).__dask_graph__())

            row[f"graph {strategy}"] = best(build)
            row[f"bytes {strategy}"] = task_bytes(model.predict(x, plan=plan))
        rows[str(chunks)] = row
    names = [name for name in rows[str(sizes[0])] if name.startswith("graph")]
    large = sizes[1:]
    slopes = {name: slope(large, [rows[str(n)][name] for n in large]) for name in names}
    return {"rows": rows, "slope": slopes}


def by_weights(sizes: tuple[int, ...]) -> dict[str, Any]:
    rows = {}
    for parameters in sizes:
        model = dx.load(heavy(parameters))
        rows[f"{parameters * 4 / 1e6:.2f} MB"] = {
            f"bytes {strategy}": task_bytes(
                model.predict(lazy_input(100), plan=model.plan(strategy))
            )
            for strategy in ("whole", "per_node")
        }
    return {"rows": rows}


def latency(requests: int) -> dict[str, Any]:
    """Measure one small request against `session.run`, on as many threads as there are cores."""
    source = heavy(100_000)
    model, x = dx.load(source), {"x": np.ones((1, 4), np.float32)}
    session = onnxruntime.InferenceSession(
        source.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    ways: dict[str, Callable[[], Any]] = {
        "session.run": lambda: session.run(None, x),
        "model.predict": lambda: model.predict(x),
        "model(x)": lambda: model(x),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    with dask.config.set(scheduler="threads"):
        for way in ways.values():
            way()
        for number in range(requests):
            random.Random(number).shuffle(order)
            for name in order:
                seconds[name].append(timed(ways[name]))
    added = {
        name: median_interval(
            [
                1e3 * (own - bare)
                for own, bare in zip(seconds[name], seconds["session.run"], strict=True)
            ]
        )
        for name in ways
        if name != "session.run"
    }
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "added_ms": {name: [round(v, 4) for v in values] for name, values in added.items()},
    }


_BY_HAND = "hand-made map_blocks with a cached session in a module"


def small_chunks(sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Measure the overhead of a chunk: a Relu over chunks of one row on two workers."""
    rows = {}
    for configured in (False, True):
        with (
            tempfile.TemporaryDirectory() as folder,
            LocalCluster(n_workers=_WORKERS, threads_per_worker=1, dashboard_address=None) as own,
            Client(own) as client,
        ):
            if configured:
                dx.configure(client)
            path = Path(folder) / "relu.onnx"
            onnx.save(finished([helper.make_node("Relu", ["x"], ["y"])], []), path)
            contestants = _on_small_chunks(str(path))
            _ratios(contestants, 100, 1)  # builds sessions and imports modules
            state = "configured" if configured else "not configured"
            for chunks in sizes:
                rows[f"{chunks} chunks, client {state}"] = _ratios(contestants, chunks, rounds)
    return {"rows": rows}


def _on_small_chunks(path: str) -> dict[str, Callable[[da.Array], da.Array]]:
    model = dx.load(path)

    def by_hand(x: da.Array) -> da.Array:
        return x.map_blocks(predict_block, path, 1, dtype=x.dtype, meta=np.empty((0, 0), x.dtype))

    return {"model.predict": model.predict, _BY_HAND: by_hand}


def _ratios(
    contestants: dict[str, Callable[[da.Array], da.Array]], chunks: int, rounds: int
) -> dict[str, Any]:
    x = da.full((chunks, 4), np.float32(-1), chunks=(1, 4), dtype=np.float32)
    sums = {name: contestant(x).sum() for name, contestant in contestants.items()}
    seconds = alternate({name: lazy.compute for name, lazy in sums.items()}, rounds)
    pairs = zip(seconds["model.predict"], seconds[_BY_HAND], strict=True)
    return {
        "tasks": {
            name: len(dask.optimize(lazy)[0].__dask_graph__()) for name, lazy in sums.items()
        },
        "ms_a_chunk": {
            name: round(1e3 * spread(values)["median"] / chunks, 2)
            for name, values in seconds.items()
        },
        "ratio": [round(value, 3) for value in median_interval([a / b for a, b in pairs])],
    }


_BARE = "client.submit of a cached session"


def prepared_requests(requests: int) -> dict[str, Any]:
    """Measure one small request on a cluster, prepared and not, against a bare `client.submit`."""
    source = heavy(10_000)
    x = np.ones((1, 4), np.float32)
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=_WORKERS, threads_per_worker=1, dashboard_address=None) as own,
        Client(own) as client,
    ):
        dx.configure(client)
        path = Path(folder) / "heavy.onnx"
        onnx.save(source, path)
        model = dx.load(path)
        request = model.prepare(client)
        staged = model.prepare(client, plan=model.plan("per_node"))

        def bare() -> Any:
            return client.submit(predict_block, x, str(path), 1, pure=False).result()

        ways: dict[str, Callable[[], Any]] = {
            _BARE: bare,
            "prepared": lambda: request(x),
            "prepared, two stages": lambda: staged(x),
            "model.predict": lambda: model.predict(x),
        }
        for way in ways.values():
            for _ in range(10):
                way()
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        order = list(ways)
        for number in range(requests):
            random.Random(number).shuffle(order)
            for name in order:
                seconds[name].append(timed(ways[name]))
    return {
        name: {
            "seconds": spread(values),
            "of_bare": [
                round(value, 3)
                for value in median_interval(
                    [own / bare for own, bare in zip(values, seconds[_BARE], strict=True)]
                )
            ],
        }
        for name, values in seconds.items()
    }


def show_prepared(found: dict[str, Any]) -> None:
    print_table(
        f"one request of one row on {_WORKERS} workers, one after the other",
        ["", "ms", f"times {_BARE} (95 %)"],
        [
            [
                name,
                f"{1e3 * row['seconds']['median']:.2f}",
                "{:.2f} ({:.2f}-{:.2f})".format(*row["of_bare"]),
            ]
            for name, row in found.items()
        ],
    )


def imports(times: int) -> dict[str, Any]:
    """Measure imports in fresh processes, in alternation."""
    seconds: dict[str, list[float]] = {"dask": [], "dask_onnx": []}
    for _ in range(times):
        for name, found in seconds.items():
            code = f"import time; b = time.perf_counter(); import {name}\n"
            code += "print(time.perf_counter() - b)"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            found.append(float(done.stdout))
    ratios = [own / dask for own, dask in zip(seconds["dask_onnx"], seconds["dask"], strict=True)]
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratio": [round(value, 4) for value in median_interval(ratios)],
    }


def show(results: dict[str, Any]) -> None:
    for title in ("by nodes", "by chunks", "by weights"):
        table = results[title]["rows"]
        names = list(next(iter(table.values())))
        body = [[size, *(_cell(name, row[name]) for name in names)] for size, row in table.items()]
        if "slope" in results[title]:
            slopes = results[title]["slope"]
            body.append(["slope", *(f"{slopes[n]:.2f}" if n in slopes else "" for n in names)])
        print_table(title, ["", *names], body)
    added = [[name, *map(str, values)] for name, values in results["latency"]["added_ms"].items()]
    print_table("one request: ms more than session.run", ["", "median", "low", "high"], added)
    print_table(
        "import dask_onnx / import dask",
        ["median", "low", "high"],
        [[str(value) for value in results["imports"]["ratio"]]],
    )


def show_small_chunks(results: dict[str, Any]) -> None:
    print_table(
        f"a Relu over chunks of one row on {_WORKERS} workers: {' / '.join(_contestants(results))}",
        ["", "tasks", "ms a chunk", "ratio (95 %)"],
        [
            [
                name,
                " / ".join(map(str, row["tasks"].values())),
                " / ".join(map(str, row["ms_a_chunk"].values())),
                "{:.2f} ({:.2f}-{:.2f})".format(*row["ratio"]),
            ]
            for name, row in results["rows"].items()
        ],
    )


def _contestants(results: dict[str, Any]) -> list[str]:
    return list(next(iter(results["rows"].values()))["tasks"])


def _cell(name: str, value: float) -> str:
    return f"{value:.0f} B" if name.startswith("bytes") else f"{value * 1e3:.1f} ms"


def main(
    output: Path,
    quick: bool,
    chunks: Sequence[int],
    rounds: int,
    only_chunks: bool,
    only_prepared: bool,
) -> None:
    cut = slice(None, 2) if quick else slice(None)
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"onnx.store.directory": folder}),
    ):
        if not only_chunks:
            prepared = prepared_requests(20 if quick else _REQUESTS)
            show_prepared(prepared)
            print(f"\n{write_json(output, 'overhead_prepared', prepared)}")
        if only_prepared:
            return
        if not only_chunks:
            results = {
                "by nodes": by_nodes((100, 300, 1000) if quick else _NODES),
                "by chunks": by_chunks((10, 100, 1000) if quick else _CHUNKS),
                "by weights": by_weights(_WEIGHTS[cut]),
                "latency": latency(50 if quick else _REQUESTS),
                "imports": imports(2 if quick else _IMPORTS),
            }
            show(results)
            print(f"\n{write_json(output, 'overhead', results)}")
        found = small_chunks(chunks[:1] if quick else chunks, 2 if quick else rounds)
        show_small_chunks(found)
        print(f"\n{write_json(output, 'overhead_chunks', found)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to check that the script works"
    )
    parser.add_argument(
        "--chunks", type=int, nargs="+", default=_SMALL_CHUNKS, help="numbers of small chunks"
    )
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="rounds of the small chunks")
    parser.add_argument("--only-chunks", action="store_true", help="measure only the small chunks")
    parser.add_argument(
        "--only-prepared", action="store_true", help="measure only prepared requests"
    )
    arguments = parser.parse_args()
    main(
        arguments.output,
        arguments.quick,
        arguments.chunks,
        arguments.rounds,
        arguments.only_chunks,
        arguments.only_prepared,
    )
