"""Nodes inside a stage: shares by `dx.profile` against ONNX Runtime's own profile of the model.

    python benchmarks/profile_nodes.py --assets .cache/assets --output benchmarks/results

PP-OCR detection on pictures of 320 x 320, as one stage on one thread. Each round profiles eight
tasks, and then runs the whole model under ONNX Runtime's profiler, on arrays of its own as tasks
have. Shares of the ten dearest nodes are compared by the median over all rounds. Kernels whose
names ONNX Runtime makes of values are left to the node that `dask_onnx` finds for them, so that
both sides name nodes alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import onnx
import onnxruntime
from common import print_table, write_json

import dask_onnx as dx
from dask_onnx.runtime.kernel_fusions import Fusions
from dask_onnx.runtime.onnxruntime_internals import numbered_name, read_kernel_calls

_WARM, _RUNS = 3, 20


def shares_of(seconds: Counter[str]) -> dict[str, float]:
    whole = sum(seconds.values())
    return {name: own / whole for name, own in seconds.items()}


def profiled(model: dx.Model, x: np.ndarray) -> dict[str, float]:
    """Return the share of each node of one stage by `dx.profile`."""
    plan = model.plan("whole", shapes={"x": (1, *x.shape[1:])})
    with dx.profile() as prof:
        lazy = model.predict(da.from_array(x, chunks=(1, *x.shape[1:])), plan=plan, batch_size=1)
        lazy.compute(scheduler="sync")
    found: Counter[str] = Counter()
    for node in prof.result.nodes:
        found[node.name] += node.seconds
    return shares_of(found)


def by_onnxruntime(path: Path, x: np.ndarray, folder: Path) -> dict[str, float]:
    """Return the share of each node in ONNX Runtime's profile of the file."""
    proto = onnx.load(path)
    nodes = {index: onnx.NodeProto() for index in range(len(proto.graph.node))}
    for index, node in enumerate(proto.graph.node):
        nodes[index].CopyFrom(node)
        node.name = numbered_name(index)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    arrays = [x[i : i + 1].copy() for i in range(2)]
    for number in range(_WARM + _RUNS):
        session.run(None, {"x": arrays[number % 2]})
    calls = read_kernel_calls(Path(session.end_profiling()))
    fusions = Fusions(nodes)
    times: dict[tuple[str, str], list[float]] = {}
    for call in calls:
        if call.run >= _WARM:
            members = fusions.members(call)
            name = nodes[members[0]].name if members else call.name
            times.setdefault((name, call.name), []).append(call.seconds)
    found: Counter[str] = Counter()
    for (name, _), own in times.items():
        found[name] += min(own)
    return shares_of(found)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    path = arguments.assets / "det.onnx"
    size = arguments.size
    x = np.random.default_rng(0).standard_normal((8, 3, size, size), dtype=np.float32)
    model = dx.load(path)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            ours.append(profiled(model, x))
            theirs.append(by_onnxruntime(path, x, Path(folder)))
    medians = [
        {name: statistics.median(each.get(name, 0.0) for each in rounds) for name in rounds[0]}
        for rounds in (ours, theirs)
    ]
    dearest = sorted(medians[1], key=lambda name: -medians[1][name])[:10]
    rows = [[name, medians[0].get(name, 0.0), medians[1][name]] for name in dearest]
    return {"rounds": arguments.rounds, "nodes": [[*row, row[1] / row[2]] for row in rows]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=320)
    arguments = parser.parse_args()
    found = measure(arguments)
    heads = ["node", "dx.profile", "ONNX Runtime", "ratio"]
    rows = [
        [name, f"{own:.2%}", f"{other:.2%}", f"{ratio:.3f}"]
        for name, own, other, ratio in found["nodes"]
    ]
    print_table("shares of the ten dearest nodes", heads, rows)
    if arguments.output:
        write_json(arguments.output, "profile_nodes", found)


if __name__ == "__main__":
    main()
