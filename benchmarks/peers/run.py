"""dask_onnx beside its peers: the same work on the same two cores.

    make bench-peers
    .venv-peers/bin/python benchmarks/peers/run.py --assets .cache/assets --short
    .venv-peers/bin/python benchmarks/peers/run.py --jobs images --peers limit ours spark

Jobs: `images` (files to vectors), `table` (Parquet, a gradient-boosting pipeline), `sentences`
(Parquet, MiniLM), `large` (a model of 340 MB), `picture` (a big one, in slices), and `killed`:
`images` with its busiest worker process killed in the middle. `peer_*.py` is each peer as its own
documentation writes it.

Only one peer is alive at a time. A first visit, which is not timed for the table, compares the
result with that of ONNX Runtime alone, and samples the memory of all processes (proportional set
size) and the bytes of Dask's graph. Then, in rounds of shuffled order, each peer is started anew:
`cold` counts from the start of its interpreter to the result, `warm` is the same job again in the
same processes. `of the limit` is the limit's seconds over the peer's, warm, within a round: the
median with a 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import median_interval, print_table, spread, write_json
from jobs import FULL, MAKERS, SHORT, Sizes, difference, result_of
from peer_process import PeerError, PeerProcess
from user_code import lines_of
from work import Result, Work

JOBS_OF = {
    "alone": ("images", "table", "sentences", "large", "picture"),
    "limit": tuple(MAKERS),
    "ours": tuple(MAKERS),
    "ours_array": ("images", "killed"),
    "ours_files": ("table", "sentences"),
    "by_hand": ("images", "table", "sentences", "large", "killed"),
    "dask_ml": ("table",),
    "ray": ("images", "table", "sentences", "large", "killed"),
    "spark": ("images", "table", "sentences", "large", "killed"),
    "sahi": ("picture",),
}
NAMES = {
    "alone": "ONNX Runtime alone",
    "limit": "two bare processes (limit)",
    "ours": "dask_onnx",
    "ours_array": "dask_onnx, dask.array",
    "ours_files": "dask_onnx, predict_files",
    "by_hand": "Dask by hand",
    "dask_ml": "dask-ml (scikit-learn)",
    "ray": "Ray Data",
    "spark": "Spark predict_batch_udf",
    "sahi": "SAHI",
}
_PACKAGES = ("ray", "pyspark", "dask-ml", "sahi", "scikit-learn", "pandas", "pyarrow")
_KILL_AT = 0.4
"""Share of a warm run after which the search for the worker to kill begins."""
_WATCHED = 0.15
"""Share of a warm run over which CPU time decides which worker is busiest."""


@dataclass
class Found:
    """Measurements of a peer in one job."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Differences, memory, graph and lines of code of the first visit; or `failed`."""
    cold: list[float] = field(default_factory=list)
    """Seconds of each round."""
    warm: list[list[float]] = field(default_factory=list)
    """Seconds of each warm run of each round."""
    killed: list[dict[str, Any]] = field(default_factory=list)
    """End, correctness and seconds of each round with a killed worker."""


@dataclass(frozen=True)
class Bench:
    """Settings of a run of the benchmark."""

    folder: Path
    rounds: int
    warm_runs: int
    limit: float
    """Seconds after which a run is given up."""


def visit(peer: str, work: Work, bench: Bench) -> PeerProcess:
    return PeerProcess(peer, work, bench.folder, bench.limit)


def checked(peer: str, work: Work, bench: Bench, expected: Result | None) -> tuple[Found, Result]:
    """Run a peer once: compare its result and measure its memory and graph."""
    process = visit(peer, work, bench)
    saved = bench.folder / "result.npz"
    try:
        with process.sampled_memory() as peak:
            answer = process.run()
        seconds = process.run()["seconds"]
        process.save(saved)
        result = result_of(work, saved)
    finally:
        process.close()
    facts = {
        "peak_bytes": peak[0],
        "graph_bytes": answer["graph_bytes"],
        "lines_of_code": lines_of(f"peer_{peer}", work.job),
        "warm_seconds_of_the_check": seconds,
        **difference(work, result, expected or result),
    }
    return Found(facts), result


def timed_round(peer: str, work: Work, bench: Bench, found: Found) -> None:
    process = visit(peer, work, bench)
    try:
        found.cold.append(process.first_run())
        found.warm.append([process.run()["seconds"] for _ in range(bench.warm_runs)])
    finally:
        process.close()


def killed_round(peer: str, work: Work, bench: Bench, found: Found, expected: Result) -> None:
    """Kill the busiest worker in the middle of a warm run."""
    process = visit(peer, work, bench)
    saved = bench.folder / "result.npz"
    try:
        found.cold.append(process.first_run())
        usual = process.run()["seconds"]
        found.warm.append([usual])
        process.send(do="run")
        outcome: dict[str, Any] = {"usual_seconds": usual}
        try:
            outcome["killed"] = process.kill_after(_KILL_AT * usual, _WATCHED * usual)
            outcome["seconds"] = process.receive()["seconds"]
            process.save(saved)
            outcome |= {"finished": True, **difference(work, result_of(work, saved), expected)}
        except PeerError as error:
            outcome |= {"finished": False, "error": str(error)}
        found.killed.append(outcome)
    finally:
        process.close()


def measure(job: str, work: Work, peers: Sequence[str], bench: Bench) -> dict[str, Found]:
    """Compare the peers of a job, then time them in rounds of shuffled order."""
    _, expected = checked("alone", work, bench, None)
    found: dict[str, Found] = {}
    for peer in peers:
        try:
            found[peer], _ = checked(peer, work, bench, expected)
        except PeerError as error:
            failed = "not installed" if error.not_installed else "failed"
            found[peer] = Found({"failed": failed, "error": str(error)})
        print(job, "check", peer, found[peer].facts, flush=True)
    for number in range(bench.rounds):
        order = [peer for peer in peers if "failed" not in found[peer].facts]
        random.Random(number).shuffle(order)
        for peer in order:
            try:
                if job == "killed":
                    killed_round(peer, work, bench, found[peer], expected)
                else:
                    timed_round(peer, work, bench, found[peer])
            except PeerError as error:
                found[peer].facts |= {"failed": "failed", "error": str(error)}
                continue
            last = found[peer].killed[-1:] or [found[peer].cold[-1], found[peer].warm[-1]]
            print(job, number, peer, last, flush=True)
    return found


def summary(found: dict[str, Found]) -> dict[str, Any]:
    """Return the numbers of each peer, with ratios to the limit of the same round and run."""
    base = found.get("limit", Found())
    results: dict[str, Any] = {}
    for peer, each in found.items():
        results[peer] = dict(each.facts)
        if each.cold:
            warm = [seconds for runs in each.warm for seconds in runs]
            results[peer] |= {"cold_seconds": spread(each.cold), "warm_seconds": spread(warm)}
            results[peer]["all_seconds"] = {"cold": each.cold, "warm": each.warm}
        if each.killed:
            results[peer]["rounds_with_a_killed_worker"] = each.killed
        ratios = [
            a / b
            for ours, theirs in zip(base.warm, each.warm, strict=False)
            for a, b in zip(ours, theirs, strict=True)
        ]
        if ratios and not each.killed:
            results[peer]["of_limit"] = median_interval(ratios)
    return results


def _cell(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def show(title: str, results: dict[str, Any]) -> None:
    rows = []
    for peer, each in results.items():
        if "failed" in each:
            rows.append([NAMES[peer], each["failed"], each["error"][:80], *[""] * 6])
            continue
        ratio = each.get("of_limit")
        graph, gap = each["graph_bytes"], each["largest_difference"]
        rows.append(
            [
                NAMES[peer],
                f"{each['cold_seconds']['median']:.1f}" if "cold_seconds" in each else "-",
                f"{each['warm_seconds']['median']:.2f}" if "warm_seconds" in each else "-",
                "{:.2f} ({:.2f}-{:.2f})".format(*ratio) if ratio else "-",
                f"{each['peak_bytes'] / 2**20:,.0f}",
                _cell(graph and graph / 1000, ",.1f"),
                str(each["lines_of_code"]),
                _cell(gap, ".1g"),
                "yes" if each["right"] else f"NO {each.get('why', '')}",
            ]
        )
    header = ["", "cold s", "warm s", "of the limit (95 %)", "peak MiB", "graph kB", "lines"]
    print_table(title, [*header, "largest difference", "right"], rows)


def show_killed(title: str, results: dict[str, Any]) -> None:
    rows = []
    for peer, each in results.items():
        rounds = each.get("rounds_with_a_killed_worker")
        if not rounds:
            rows.append([NAMES[peer], each.get("failed", "-"), each.get("error", "")[:80], "", ""])
            continue
        done = [outcome for outcome in rounds if outcome["finished"]]
        later = [outcome["seconds"] - outcome["usual_seconds"] for outcome in done]
        right = sum(outcome["right"] for outcome in done)
        usual = spread([outcome["usual_seconds"] for outcome in rounds])["median"]
        errors = {outcome["error"] for outcome in rounds if not outcome["finished"]}
        rows.append(
            [
                NAMES[peer],
                f"{len(done)} of {len(rounds)}",
                f"{right} of {len(rounds)}",
                f"{usual:.2f}",
                f"{spread(later)['median']:+.2f}" if later else "; ".join(errors)[:80],
            ]
        )
    print_table(title, ["", "finished", "right", "usual s", "seconds later"], rows)


def versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def title_of(job: str, work: Work, sizes: Sizes) -> str:
    what = {
        "images": f"{sizes.pictures} pictures in files to vectors",
        "table": f"{sizes.rows:,} rows of Parquet, gradient boosting",
        "sentences": f"{sizes.sentences:,} sentences, MiniLM",
        "large": f"{sizes.blocks} blocks of 4 x 64 tokens, a model of 340 MB",
        "picture": f"a picture of {sizes.side} x {sizes.side} pixels in slices of 640",
        "killed": f"{sizes.pictures} pictures, a worker killed in the middle",
    }[job]
    return f"{what}; {work.batch} rows a run"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--output", type=Path, help="folder for peers.json")
    parser.add_argument("--jobs", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    parser.add_argument("--peers", nargs="+", choices=list(JOBS_OF), default=list(JOBS_OF))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--warm-runs", type=int, default=2, help="in each round")
    parser.add_argument("--rows", type=int, help="rows of the table")
    parser.add_argument("--pictures", type=int, help="pictures of `images` and `killed`")
    parser.add_argument("--limit", type=float, default=900, help="seconds of a run")
    parser.add_argument("--short", action="store_true", help="small sizes, one round")
    arguments = parser.parse_args()
    chosen = FULL
    if arguments.short:
        chosen, arguments.rounds = SHORT, 1
    if arguments.rows:
        chosen = replace(chosen, rows=arguments.rows)
    if arguments.pictures:
        chosen = replace(chosen, pictures=arguments.pictures)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    results: dict[str, Any] = {}
    for job in arguments.jobs:
        with tempfile.TemporaryDirectory(prefix="peers-") as name:
            folder = Path(name)
            os.environ["DASK_ONNX__STORE__DIRECTORY"] = str(folder / "store")
            work = MAKERS[job](folder, arguments.assets.absolute(), chosen)
            bench = Bench(folder, arguments.rounds, arguments.warm_runs, arguments.limit)
            peers = [peer for peer in arguments.peers if job in JOBS_OF[peer]]
            found = summary(measure(job, work, peers, bench))
        title = title_of(job, work, chosen)
        results[job] = {"title": title, "batch": work.batch, "peers": found}
        if job == "killed":
            show_killed(title, found)
        else:
            show(title, found)
        if arguments.output:
            facts = {"packages": versions(), "sizes": asdict(chosen), "jobs": results}
            print(write_json(arguments.output, "peers", facts), flush=True)


if __name__ == "__main__":
    main()
