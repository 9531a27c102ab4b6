"""Cost of weights: seconds until a process can run a model, memory of 1, 2 and 4 processes.

    python benchmarks/weights.py --assets .cache/assets --output benchmarks/results

Each measurement is a fresh process. Imports are finished before timing starts, and the memory of a
process before it loads a model is measured too, since an interpreter with onnxruntime is not small.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
COUNTS = (1, 2, 4)
MIB = 2**20
CONTESTANTS = {
    "ours": "the session of a task of dask_onnx on a worker",
    "path": "InferenceSession(path)",
    "bytes": "InferenceSession(bytes)",
    "by hand": "map_partitions with the model's bytes as an argument, a session kept in a global",
}


def memory() -> dict[str, int]:
    """Return bytes of this process: proportional (PSS), unique (USS) and resident (RSS)."""
    import psutil

    info = psutil.Process().memory_full_info()
    return {"pss": info.pss, "uss": info.uss, "rss": info.rss}


def child(contestant: str, folder: Path) -> None:
    """Run in the measured process: write a line of JSON when ready, then one for each line read."""
    request = pickle.loads((folder / "request.pickle").read_bytes())
    x, path, call = request["x"], request["path"], request["call"]
    import onnxruntime

    from dask_onnx.runtime.kernel import run_stage
    from dask_onnx.runtime.stage_sessions import stage_session

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    base = memory()
    keep: list[Any] = []
    run: Callable[[], Any]
    if contestant == "by hand":
        keep.append(Path(path).read_bytes())  # arrives with the task
    began = time.perf_counter()
    if contestant == "ours":
        stage_session(call.stage, call.options.session)
        run = partial(run_stage, call, x)
    else:
        source: Any = path
        if contestant == "bytes":
            source = Path(path).read_bytes()
        elif contestant == "by hand":
            source = keep[0]
        session = onnxruntime.InferenceSession(source, options, providers=providers)
        del source
        name = session.get_inputs()[0].name
        run = partial(session.run, None, {name: x})
    ready = time.perf_counter() - began
    result = run()
    seconds = []
    for _ in range(request["runs"]):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    total = float(np.abs(result).sum())
    facts = {"ready": ready, "run": float(np.median(seconds)), "total": total, "base": base}
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        sys.stdout.write(json.dumps(memory()) + "\n")
        sys.stdout.flush()


class Measured:
    """Process of one contestant, which keeps its model until closed."""

    def __init__(self, contestant: str, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", contestant, "--folder", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def facts(self) -> dict[str, Any]:
        return self._line()

    def memory(self) -> dict[str, int]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._line()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def measured(contestant: str, folder: Path, count: int) -> Iterator[list[Measured]]:
    processes = [Measured(contestant, folder) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.close()


def prepare(folder: Path, path: Path, x: np.ndarray, runs: int) -> int:
    """Write the request of the child processes; return the bytes of the model's weights."""
    import dask_onnx as dx
    from dask_onnx.lowering.lower import stage_ref
    from dask_onnx.runtime.batching import Batching
    from dask_onnx.runtime.stage_calls import StageCall
    from dask_onnx.runtime.stage_options import StageOptions

    model = dx.load(path)
    (stage,) = model.plan("whole").stages
    call = StageCall(
        stage=stage_ref(model._published().ref, stage),
        options=StageOptions(dx.SessionSpec(intra_op_num_threads=1), Batching(None)),
        picks=((0, None),),
        row_axes=(None,),
        join_axes=(None,),
    )
    folder.mkdir(exist_ok=True)
    request = {"x": x, "path": str(path), "call": call, "runs": runs}
    (folder / "request.pickle").write_bytes(pickle.dumps(request))
    return model._onnx.parameter_bytes


def compare(name: str, folder: Path, weight_bytes: int, rounds: int) -> dict[str, Any]:
    """Run rounds in which a fresh process loads each contestant, in shuffled order."""
    from common import median_interval, print_table, spread

    rng = np.random.default_rng(0)
    with measured("ours", folder, 1) as (first,):
        first_ready = first.facts()["ready"]  # fills the store, and packs weights where that pays
    found: dict[str, list[dict[str, Any]]] = {contestant: [] for contestant in CONTESTANTS}
    for _ in range(rounds):
        for contestant in rng.permutation(list(CONTESTANTS)):
            with measured(str(contestant), folder, 1) as (process,):
                found[str(contestant)].append(process.facts())
    totals = {round(facts["total"], 1) for results in found.values() for facts in results}
    assert len(totals) == 1, totals
    table: dict[str, Any] = {}
    for contestant, results in found.items():
        pss: dict[int, list[int]] = {}
        base = 0
        for count in COUNTS:
            with measured(contestant, folder, count) as processes:
                base = min(process.facts()["base"]["uss"] for process in processes)
                pss[count] = [process.memory()["pss"] for process in processes]
        more = (sum(pss[4]) - sum(pss[1])) / 3
        ready = [a["ready"] / b["ready"] for a, b in zip(results, found["path"], strict=True)]
        fastest = [min(found["path"][i]["run"], found["bytes"][i]["run"]) for i in range(rounds)]
        run = [facts["run"] / best for facts, best in zip(results, fastest, strict=True)]
        table[contestant] = {
            "ready_seconds": spread([facts["ready"] for facts in results]),
            "ready_of_path": median_interval(ready),
            "run_seconds": spread([facts["run"] for facts in results]),
            "run_of_best": median_interval(run),
            "pss_mib": {
                count: [round(size / MIB) for size in sizes] for count, sizes in pss.items()
            },
            "each_more_process_of_weights": more / weight_bytes,
            "of_it_the_bare_process": base / weight_bytes,
        }
    print_table(
        f"{name}: {weight_bytes / MIB:.0f} MiB of weights; the first process of a host took "
        f"{first_ready:.2f} s",
        [
            "",
            "ready",
            "of path",
            "run",
            "of best",
            "PSS of 1",
            "of 4",
            "one more / weights",
            "bare",
        ],
        [
            [
                contestant,
                f"{row['ready_seconds']['median']:.3f} s",
                "{:.2f} ({:.2f}-{:.2f})".format(*row["ready_of_path"]),
                f"{row['run_seconds']['median'] * 1e3:.1f} ms",
                "{:.3f} ({:.3f}-{:.3f})".format(*row["run_of_best"]),
                f"{sum(row['pss_mib'][1])} MiB",
                f"{sum(row['pss_mib'][4])} MiB",
                f"{row['each_more_process_of_weights']:.2f}",
                f"{row['of_it_the_bare_process']:.2f}",
            ]
            for contestant, row in table.items()
        ],
    )
    return {"weight_bytes": weight_bytes, "first_ready_seconds": first_ready, "contestants": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.folder)
        return
    sys.path.insert(0, str(HERE))
    from common import write_json
    from transformer import WIDTH, make_transformer

    rng = np.random.default_rng(0)
    results = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        os.environ["DASK_ONNX__STORE__DIRECTORY"] = str(folder / "store")
        models = {
            "transformer": (
                make_transformer(folder / "transformer.onnx"),
                rng.standard_normal((1, 64, WIDTH), dtype=np.float32),
                15,
            ),
            "PP-OCR det": (
                (arguments.assets / "det.onnx").absolute(),
                rng.random((1, 3, 320, 320), dtype=np.float32),
                30,
            ),
        }
        for name, (path, x, runs) in models.items():
            size = prepare(folder / name.replace(" ", "-"), path, x, runs)
            results[name] = compare(name, folder / name.replace(" ", "-"), size, arguments.rounds)
    if arguments.output:
        write_json(arguments.output, "weights", results)


if __name__ == "__main__":
    main()
