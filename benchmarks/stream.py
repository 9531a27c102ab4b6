"""Streams of frames: throughput, latency and drops at several loads, against two other ways.

Ours is `dx.stream`. By hand is a loop over `as_completed` with a cached session in a module. The
limit is one process with as many one-thread sessions as there are cores, without Dask.

python benchmarks/stream.py --output benchmarks/results
python benchmarks/stream.py --output benchmarks/results --loads 0.5 --streams 1 --seconds 10
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import numpy.typing as npt
import onnx
from common import alternate, print_table, spread, timed, write_json
from distributed import Client, LocalCluster, as_completed
from imported_session import one_thread_session, predict_block
from onnx import TensorProto, helper, numpy_helper

import dask_onnx as dx

Frame = npt.NDArray[np.float32]

_SIDE = 96
"""Pixels of a side of a frame."""
_CHANNELS = 32
_LOADS = (0.1, 0.5, 0.9, 1.2)
_STREAMS = (1, 4, 16)
_SECONDS = 2.0
_FRAMES = 100
_ROUNDS = 3
_TOGETHER = 4
"""Frames that share a task, in the ways that say so."""
_TARGET_SECONDS = 0.025
"""Seconds that the model takes for a frame, about."""


def convolutions(layers: int, seed: int = 0) -> onnx.ModelProto:
    """Return x (1, 3, side, side) through some convolutions to y (1, channels)."""
    rng = np.random.default_rng(seed)
    nodes, weights, last, width = [], [], "x", 3
    for i in range(layers):
        w = rng.standard_normal((_CHANNELS, width, 3, 3), dtype=np.float32)
        w /= np.float32(3 * width**0.5)
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        last, width = f"r{i}", _CHANNELS
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["p"]))
    nodes.append(helper.make_node("Flatten", ["p"], ["y"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        f"convolutions_{seed}",
        [value("x", TensorProto.FLOAT, [1, 3, _SIDE, _SIDE])],
        [value("y", TensorProto.FLOAT, [1, _CHANNELS])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def frames() -> list[Frame]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, 3, _SIDE, _SIDE), dtype=np.float32) for _ in range(8)]


class Limit:
    """As many sessions of one thread as there are cores, in this process."""

    def __init__(self, paths: Sequence[str], cores: int) -> None:
        self.pool = ThreadPoolExecutor(cores)
        self.sessions = [[one_thread_session(path) for path in paths] for _ in range(cores)]
        self.own = threading.local()
        self.numbers = itertools.count()

    def run(self, frame: Frame, model: int = 0) -> Any:
        if not hasattr(self.own, "sessions"):
            self.own.sessions = self.sessions[next(self.numbers) % len(self.sessions)]
        return self.own.sessions[model].run(None, {"x": frame})

    def seconds(self, given: Sequence[Frame], models: int = 1) -> float:
        work = [(frame, model) for frame in given for model in range(models)]
        return timed(lambda: list(self.pool.map(lambda each: self.run(*each), work)))


def by_hand(client: Client, path: str, source: Iterator[Frame], window: int) -> Iterator[int]:
    """Yield the numbers of frames as they come, with at most `window` of them in flight."""
    numbers: dict[Any, int] = {}
    done = as_completed()
    for number, frame in enumerate(source):
        future = client.submit(predict_block, frame, path, 1, pure=False)
        numbers[future] = number
        done.add(future)
        if done.count() >= window:
            finished = next(done)
            finished.result()
            yield numbers.pop(finished)
    for finished in done:
        finished.result()
        yield numbers.pop(finished)


def throughput(
    client: Client, paths: Sequence[str], count: int, rounds: int, cores: int
) -> dict[str, Any]:
    """Measure the seconds of `count` frames with all ways, and of two models on each frame."""
    given = list(itertools.islice(itertools.cycle(frames()), count))
    limit = Limit(paths, cores)
    models = [dx.load(path) for path in paths]

    def ours(*which: dx.Model, micro_batch: int = 1) -> None:
        async def one(model: dx.Model) -> None:
            stream = dx.stream(model, iter(given), client, ordered=False, micro_batch=micro_batch)
            async for _ in stream:
                pass

        async def together() -> None:
            await asyncio.gather(*map(one, which))

        asyncio.run(together())

    ways: dict[str, Callable[[], Any]] = {
        "limit": lambda: limit.seconds(given),
        "ours": lambda: ours(models[0]),
        f"ours, micro_batch={_TOGETHER}": lambda: ours(models[0], micro_batch=_TOGETHER),
        "by hand": lambda: list(by_hand(client, paths[0], iter(given), 3 * cores)),
        "limit, two models": lambda: limit.seconds(given, 2),
        "two models side by side": lambda: ours(*models),
        f"two models, micro_batch={_TOGETHER}": lambda: ours(*models, micro_batch=_TOGETHER),
        "two models one after the other": lambda: [ours(model) for model in models],
    }
    for way in ways.values():
        way()  # builds sessions
    seconds = alternate(ways, rounds)
    return {
        name: {
            "seconds": spread(values),
            "frames_per_second": round(count / float(np.median(values)), 1),
            "of_limit": round(
                float(
                    np.median(
                        [
                            a / b
                            for a, b in zip(
                                seconds["limit, two models" if "two" in name else "limit"],
                                values,
                                strict=True,
                            )
                        ]
                    )
                ),
                3,
            ),
        }
        for name, values in seconds.items()
    }


class Pace:
    """Source of frames at a steady rate, which notes when each was due."""

    def __init__(self, rate: float, seconds: float, offset: float) -> None:
        self.count, self.rate, self.offset = max(2, int(rate * seconds)), rate, offset
        self.due: list[float] = []

    def __iter__(self) -> Iterator[Frame]:
        began = time.perf_counter() + self.offset / self.rate
        for number, frame in zip(range(self.count), itertools.cycle(frames()), strict=False):
            due = began + number / self.rate
            time.sleep(max(0.0, due - time.perf_counter()))
            self.due.append(due)
            yield frame


def paced(
    client: Client,
    path: str,
    rate: float,
    streams: int,
    seconds: float,
    deadline: float,
    window: int,
) -> dict[str, Any]:
    """Measure latencies at a rate, that of all streams together, with both ways."""
    model = dx.load(path)

    def sources() -> list[Pace]:
        return [Pace(rate / streams, seconds, n / streams) for n in range(streams)]

    async def one(pace: Pace) -> tuple[list[float], int]:
        latencies, drops = [], 0
        stream = dx.stream(model, pace, client, ordered=False, deadline=deadline, late="latest")
        async for index, result in stream:
            if isinstance(result, dx.Dropped):
                drops += 1
            else:
                latencies.append(time.perf_counter() - pace.due[index])
        return latencies, drops

    async def ours() -> list[tuple[list[float], int]]:
        return await asyncio.gather(*map(one, sources()))

    def hand(pace: Pace) -> tuple[list[float], int]:
        numbers = by_hand(client, path, iter(pace), window)
        return [time.perf_counter() - pace.due[number] for number in numbers], 0

    def hands() -> list[tuple[list[float], int]]:
        with ThreadPoolExecutor(streams) as pool:
            return list(pool.map(hand, sources()))

    return {
        name: _latencies(found, began)
        for name, (found, began) in {
            "ours": _timed_result(lambda: asyncio.run(ours())),
            "by hand": _timed_result(hands),
        }.items()
    }


def _timed_result(function: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    found = function()
    return found, time.perf_counter() - began


def _latencies(found: Sequence[tuple[list[float], int]], seconds: float) -> dict[str, Any]:
    latencies = [each for own, _ in found for each in own]
    drops = sum(count for _, count in found)
    p50, p99 = np.percentile(latencies, [50, 99]) if latencies else (float("nan"),) * 2
    return {
        "frames_per_second": round(len(latencies) / seconds, 1),
        "p50_ms": round(1e3 * float(p50), 1),
        "p99_ms": round(1e3 * float(p99), 1),
        "drops": drops,
        "frames": len(latencies) + drops,
    }


def layers_for(seconds: float) -> int:
    """Return the number of convolutions that take about so many seconds on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "probe.onnx")
        onnx.save(convolutions(4), path)
        session, frame = one_thread_session(path), frames()[0]
        session.run(None, {"x": frame})
        one = min(timed(lambda: session.run(None, {"x": frame})) for _ in range(5)) / 4
    return max(2, round(seconds / one))


def show(results: dict[str, Any]) -> None:
    print_table(
        f"throughput, frames of {results['model_ms']} ms",
        ["", "frames/s", "of the limit"],
        [[n, str(r["frames_per_second"]), str(r["of_limit"])] for n, r in results["ways"].items()],
    )
    print_table(
        f"paced, capacity {results['capacity']} frames/s",
        ["load", "streams", "", "frames/s", "p50 ms", "p99 ms", "drops"],
        [
            [
                f"{row['load']:.0%}",
                str(row["streams"]),
                name,
                str(row[name]["frames_per_second"]),
                str(row[name]["p50_ms"]),
                str(row[name]["p99_ms"]),
                f"{row[name]['drops']} of {row[name]['frames']}",
            ]
            for row in results["paced"]
            for name in ("ours", "by hand")
        ],
    )


def main(arguments: argparse.Namespace) -> None:
    cores = len(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"onnx.store.directory": folder}),
        LocalCluster(n_workers=cores, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        layers = layers_for(_TARGET_SECONDS)
        paths = [str(Path(folder) / f"{seed}.onnx") for seed in range(2)]
        for seed, path in enumerate(paths):
            onnx.save(convolutions(layers, seed), path)
        ways = throughput(client, paths, arguments.frames, arguments.rounds, cores)
        capacity = ways["limit"]["frames_per_second"]
        model_seconds = cores / capacity
        rows = []
        for load, streams in itertools.product(arguments.loads, arguments.streams):
            found = paced(
                client,
                paths[0],
                load * capacity,
                streams,
                arguments.seconds,
                deadline=10 * model_seconds,
                window=3 * cores,
            )
            rows.append({"load": load, "streams": streams, **found})
    results = {
        "model_ms": round(1e3 * model_seconds, 1),
        "capacity": capacity,
        "ways": ways,
        "paced": rows,
    }
    show(results)
    print(f"\n{write_json(arguments.output, 'stream', results)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=_FRAMES, help="frames of a throughput run")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="rounds of throughput")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="seconds at each load")
    parser.add_argument("--loads", type=float, nargs="+", default=_LOADS)
    parser.add_argument("--streams", type=int, nargs="+", default=_STREAMS)
    main(parser.parse_args())
