"""The planner: predicted and measured seconds, the choice of `auto`, planning time by nodes.

    python benchmarks/planner.py --assets .cache/assets --output benchmarks/results

The nodes of each model are measured once, at one number of rows and at one row. Other numbers of
rows and other cuts are then predicted, and run task after task on one thread. Next comes one
request on two threads of this process: every strategy in alternating rounds, and the plan that
`plan("auto", aim="latency")` chooses. Then eight batches run on two worker processes, transfers
included: the prediction of `plan.judge` for every strategy, and the time it takes. Last, the time
to plan synthetic graphs, by number of nodes and by kind of graph.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import onnx
from common import Array, alternate, file_array, print_table, reduced, timed, write_json
from distributed import Client, LocalCluster
from graphs import dense_blocks, made_graph, random_reads, unet
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.ensemble import GradientBoostingClassifier

import dask_onnx as dx

_STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    "whole": {},
    "fused": {"n_stages": 4},
    "branches": {"n_workers": 2},
    "pipeline": {"n_stages": 3},
}
_ROUNDS = 5
_MOST_ROUNDS, _ENOUGH_SECONDS = 50, 0.5
"""Limits of the rounds of short requests, which are repeated more often: rounds, and seconds."""
_ONE_THREAD = dx.SessionSpec(intra_op_num_threads=1)

Feeds = dict[str, Array]


def feeds_of(rows: int, name: str) -> Feeds:
    """Return inputs of a model with plausible values, the same for each call."""
    rng = np.random.default_rng(0)
    if name in ("det", "rec", "cls"):
        shape = {"det": (3, 320, 320), "rec": (3, 48, 320), "cls": (3, 48, 192)}[name]
        return {"x": rng.standard_normal((rows, *shape), dtype=np.float32)}
    if name == "minilm":
        ids = rng.integers(1000, 20000, (rows, 64))
        return {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
    if name == "magika":
        return {"bytes": rng.integers(0, 257, (rows, 2048)).astype(np.int32)}
    if name == "tashkeel":
        return {"input_ids": rng.integers(1, 20, (rows, 120))}
    if name == "rawi":
        return {"input": rng.integers(1, 20, (rows, 120))}
    if name.startswith("silero"):
        return {
            "input": rng.standard_normal((rows, 576), dtype=np.float32),
            "state": np.zeros((2, rows, 128), np.float32),
            "sr": np.array(16_000),
        }
    if name == "boosting":
        return {"X": rng.uniform(0, 16, (rows, 64)).astype(np.float32)}
    inputs = ("input_1", "input_2") if name == "deepcut" else ("inputs", "inputs_1")
    return {each: rng.integers(0, 12, (rows, 21)).astype("f4") for each in inputs}


_ROWS = {
    "det": (3, (2, 6)),
    "rec": (4, (2, 8)),
    "cls": (16, (4, 32)),
    "minilm": (8, (2, 16)),
    "magika": (16, (4, 32)),
    "deepcut": (256, (64, 512)),
    "oskut_deepcut": (256, (64, 512)),
    "tashkeel": (4, (2, 16)),
    "rawi": (4, (2, 16)),
    "silero_vad": (16, (4, 64)),
    "silero_vad_op15": (16, (4, 64)),
    "boosting": (1000, (200, 4000)),
}
"""Number of rows that is measured, besides one row, and the numbers that are predicted and run."""


def source_of(name: str, assets: Path) -> Any:
    """Return the path of a model, or gradient boosting fitted to scikit-learn's digits."""
    if name != "boosting":
        return assets / f"{name}.onnx"
    x, y = load_digits(return_X_y=True)
    fitted = GradientBoostingClassifier(n_estimators=40, random_state=0).fit(x, y)
    return to_onnx(fitted, x[:1].astype(np.float32), options={"zipmap": False})


def predictions(model: dx.Model, feeds: Feeds) -> Iterator[tuple[str, float, float]]:
    """Yield strategy, predicted and measured seconds of one run, task after task on one thread."""
    shapes = {name: array.shape for name, array in feeds.items()}
    for strategy, options in _STRATEGIES.items():
        try:
            plan = model.plan(strategy, shapes=shapes, session=_ONE_THREAD, **options)
        except dx.PlanError:
            continue  # fewer pieces than stages
        times = []
        with dask.config.set(scheduler="sync"):
            for _ in range(_ROUNDS + 1):
                began = time.perf_counter()
                model.predict(feeds, plan=plan, batch_size=None)
                times.append(time.perf_counter() - began)
        yield strategy, plan.stage_graph.seconds, float(np.median(times[1:]))


def choices(model: dx.Model, feeds: Feeds, rounds: int) -> dict[str, Any]:
    """Measure one request on the threads of this process: each strategy, and auto's choice."""
    shapes = {name: array.shape for name, array in feeds.items()}
    runners: dict[str, Callable[[], Any]] = {}
    predicted: dict[str, float] = {}
    for strategy, options in _STRATEGIES.items():
        try:
            plan = model.plan(strategy, shapes=shapes, aim="latency", **options)
        except dx.PlanError:
            continue
        predicted[strategy] = plan.judge(batches=1).best.seconds
        runners[strategy] = partial(model.predict, feeds, plan=plan, batch_size=None)
    auto = model.plan("auto", shapes=shapes, aim="latency")
    assert auto.verdict is not None
    predicted["auto"] = auto.verdict.best.seconds
    size: Any = "auto" if auto.verdict.best.parts > 1 else None
    runners["auto"] = lambda: model.predict(feeds, plan=auto, batch_size=size)
    for runner in runners.values():
        runner()
    slowest = max(map(timed, runners.values()))
    # Times of a few milliseconds are noisy, and the fastest of several is then fast by chance.
    seconds = alternate(runners, max(rounds, min(_MOST_ROUNDS, int(_ENOUGH_SECONDS / slowest))))
    medians = {name: float(np.median(each)) for name, each in seconds.items()}
    best = min((name for name in medians if name != "auto"), key=medians.__getitem__)
    return {
        "auto": auto.verdict.chosen,
        "best": best,
        "auto_of_best": float(
            np.median([a / b for a, b in zip(seconds["auto"], seconds[best], strict=True)])
        ),
        "seconds": {name: (predicted[name], medians[name]) for name in runners},
    }


_BATCHES = 8
_ON_CLUSTER = ("det", "rec", "cls", "minilm", "magika", "deepcut", "oskut_deepcut", "boosting")
"""Models whose rows are independent, along the first axis of every input."""
_CLUSTER_PLANS: Mapping[str, tuple[str, Mapping[str, Any], bool]] = {
    "whole": ("whole", {}, False),
    "pipeline of 2": ("pipeline", {"n_stages": 2}, False),
    "pipeline of 2, in worker groups": ("pipeline", {"n_stages": 2}, True),
    "branches of 2": ("branches", {"n_workers": 2}, False),
    "fused of 4": ("fused", {"n_stages": 4}, False),
}
"""Strategy, options, and whether each stage stays on a worker."""


def on_cluster(
    model: dx.Model, name: str, folder: Path, client: Client, rounds: int
) -> dict[str, tuple[float, float]]:
    """Return predicted and measured seconds of eight batches on the client's workers, by plan."""
    rows = _ROWS[name][0]
    lazy = {}
    for each, array in feeds_of(_BATCHES * rows, name).items():
        path = folder / f"{name}.{each}.npy"
        np.save(path, array)
        lazy[each] = file_array(str(path), rows)
    shapes = {each: (rows, *array.shape[1:]) for each, array in lazy.items()}
    predicted: dict[str, float] = {}
    runners: dict[str, Callable[[], Any]] = {}
    for title, (strategy, options, in_worker_groups) in _CLUSTER_PLANS.items():
        try:
            plan = model.plan(strategy, shapes=shapes, session=_ONE_THREAD, **options)
        except dx.PlanError:
            continue  # fewer pieces than stages
        if in_worker_groups:
            plan = plan.with_placement(dx.Placement.one_each(len(plan.stages), 2))
        predicted[title] = plan.judge(batches=_BATCHES).best.seconds
        found = model.predict(lazy, plan=plan, batch_size=None)
        first = found if not isinstance(found, dict) else next(iter(found.values()))
        runners[title] = reduced(first).compute
    for runner in runners.values():
        runner()
    seconds = alternate(runners, rounds)
    return {title: (predicted[title], float(np.median(seconds[title]))) for title in runners}


_GRAPHS = {
    "branches in a row": made_graph,
    "U-net": unet,
    "dense blocks of 100": dense_blocks,
    "20 random reads a node": random_reads,
}
_PLANNED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{name: (name, options) for name, options in _STRATEGIES.items()},
    "pipeline of 500": ("pipeline", {"n_stages": 500}),
    "per_node": ("per_node", {}),
    "auto": ("auto", {"batches": 1}),
}


def planning_seconds(proto: onnx.ModelProto, planned: str) -> float:
    """Return the CPU seconds of planning, including the analysis of the graph."""
    strategy, options = _PLANNED[planned]
    model = dx.load(proto)
    began = time.process_time()
    model.plan(strategy, **options)
    return time.process_time() - began


def planning_times(sizes: tuple[int, ...] = (1000, 3000, 10000)) -> dict[str, dict[str, float]]:
    """Return CPU seconds by strategy and number of nodes."""
    found: dict[str, dict[str, float]] = {name: {} for name in _PLANNED}
    for size in sizes:
        proto = made_graph(size)
        for planned in _PLANNED:
            found[planned][str(size)] = planning_seconds(proto, planned)
    return found


def planning_times_by_graph(nodes: int = 10_000) -> dict[str, dict[str, float]]:
    """Return CPU seconds by kind of graph and strategy."""
    found = {}
    for name, make in _GRAPHS.items():
        proto = make(nodes)
        found[name] = {planned: planning_seconds(proto, planned) for planned in _PLANNED}
    return found


def cluster_results(assets: Path, rounds: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the results of `on_cluster` by model; nodes are measured before the cluster starts."""
    found = {}
    for name in _ON_CLUSTER:
        with (
            tempfile.TemporaryDirectory() as folder,
            dask.config.set({"onnx.store.directory": f"{folder}/store"}),
        ):
            model = dx.load(source_of(name, assets))
            model.plan(measure=feeds_of(_ROWS[name][0], name), session=_ONE_THREAD)
            with (
                LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
                Client(cluster) as client,
            ):
                dx.configure(client)
                found[name] = on_cluster(model, name, Path(folder), client, rounds)
    return found


def errors_of(pairs: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Print and return the relative errors of pairs of predicted and measured seconds."""
    off = [abs(predicted / measured - 1) for predicted, measured in pairs]
    found = {"median_error": float(np.median(off)), "largest_error": float(np.max(off))}
    print(f"median error {found['median_error']:.0%}, largest {found['largest_error']:.0%}")
    return found


def in_process(assets: Path, rounds: int) -> dict[str, Any]:
    """Measure predictions of one run on one thread, and one request on this process's threads."""
    found: list[tuple[str, int, str, float, float]] = []
    chosen: dict[str, Any] = {}
    for name, (known, asked) in _ROWS.items():
        with (
            tempfile.TemporaryDirectory() as folder,
            dask.config.set({"onnx.store.directory": folder}),
        ):
            model = dx.load(source_of(name, assets))
            model.plan(measure=feeds_of(known, name), session=_ONE_THREAD)
            for count in asked:
                feeds = feeds_of(count, name)
                found += [(name, count, *each) for each in predictions(model, feeds)]
            chosen[name] = choices(model, feeds, rounds)
    print_table(
        "One run on one thread, at rows that were not measured",
        ["model", "rows", "strategy", "predicted ms", "measured ms", "error"],
        [[name, count, strategy, *_beside(p, m)] for name, count, strategy, p, m in found],
    )
    errors = errors_of((predicted, measured) for *_, predicted, measured in found)
    print_table(
        "One request on the threads of one process",
        ["model", "auto's choice", "best single", "auto / best"],
        [[n, c["auto"], c["best"], f"{c['auto_of_best']:.2f}"] for n, c in chosen.items()],
    )
    beside = [
        (name, strategy, *seconds)
        for name, choice in chosen.items()
        for strategy, seconds in choice["seconds"].items()
    ]
    print_table(
        "The same requests",
        ["model", "strategy", "predicted ms", "measured ms", "error"],
        [[name, strategy, *_beside(p, m)] for name, strategy, p, m in beside],
    )
    of_requests = errors_of((predicted, measured) for *_, predicted, measured in beside)
    return {
        "one_thread": errors,
        "requests": of_requests,
        "predictions": found,
        "choices": chosen,
    }


def on_two_workers(assets: Path, rounds: int) -> dict[str, Any]:
    """Compare predicted and measured seconds of eight batches on two workers."""
    found = cluster_results(assets, rounds)
    print_table(
        f"{_BATCHES} batches on two workers of one thread",
        ["model", "plan", "predicted ms", "measured ms", "error"],
        [
            [name, title, *_beside(*seconds)]
            for name, plans in found.items()
            for title, seconds in plans.items()
        ],
    )
    return {
        **errors_of(each for plans in found.values() for each in plans.values()),
        "plans": found,
    }


def planning(assets: Path, rounds: int) -> dict[str, Any]:
    """Measure planning time; the parameters are unused."""
    by_nodes, by_graph = planning_times(), planning_times_by_graph()
    for title, first, found in (
        ("Planning, CPU seconds by nodes", "strategy", by_nodes),
        ("Planning 10,000 nodes, CPU seconds", "graph", by_graph),
    ):
        print_table(
            title,
            [first, *next(iter(found.values()))],
            [[name, *(f"{each:.2f}" for each in row.values())] for name, row in found.items()],
        )
    return {"by_nodes": by_nodes, "by_graph": by_graph}


def _beside(predicted: float, measured: float) -> list[str]:
    numbers = [f"{1000 * seconds:.2f}" for seconds in (predicted, measured)]
    return [*numbers, f"{predicted / measured - 1:+.0%}"]


_PARTS: Mapping[str, Callable[[Path, int], dict[str, Any]]] = {
    "planner": in_process,
    "planner_cluster": on_two_workers,
    "planner_times": planning,
}
"""Parts of the benchmark, by the name of the results file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=list(_PARTS), default=list(_PARTS))
    arguments = parser.parse_args()
    for part in arguments.parts:
        found = _PARTS[part](arguments.assets, arguments.rounds)
        if arguments.output:
            write_json(arguments.output, part, found)


if __name__ == "__main__":
    main()
