"""Plans that `chaos` runs: each makes a function that computes a request and returns arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import onnx
import pandas as pd
from chaos_hosts import python_path
from chaos_steps import ROWS, WIDTH, load_block, slow_block, slow_relu
from distributed import Client
from onnx import TensorProto, helper, numpy_helper

import dask_onnx as dx

Array = npt.NDArray[Any]
Run = Callable[[], list[Array]]
BLOCKS = 40
_MOST_RESUMPTIONS = 6
"""Times that a job is resumed until it counts as one that fails."""
_WORDS = "the quick brown fox jumps over a lazy dog while rain falls on every roof".split()


def _weights(*shape: int, seed: int = 0) -> Array:
    numbers = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])
    return numbers.astype(np.float32)


def _model(
    nodes: list[onnx.NodeProto], weights: Mapping[str, Array], shape: list[Any], out: list[Any]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "chaos",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain() -> onnx.ModelProto:
    """Return x -> two layers of MatMul and Relu -> y, both float32 (N, WIDTH)."""
    nodes, weights, last = [], {}, "x"
    for i in range(2):
        weights[f"W{i}"] = _weights(WIDTH, WIDTH, seed=i)
        result = "y" if i == 1 else f"r{i}"
        nodes += [
            helper.make_node("MatMul", [last, f"W{i}"], [f"m{i}"], name=f"product{i}"),
            helper.make_node("Relu", [f"m{i}"], [result], name=f"relu{i}"),
        ]
        last = result
    return _model(nodes, weights, ["N", WIDTH], ["N", WIDTH])


def forked() -> onnx.ModelProto:
    """Return x -> two branches of a MatMul and a Relu each -> their sum y."""
    nodes = [helper.make_node("Add", ["r0", "r1"], ["y"], name="join")]
    for i in reversed(range(2)):
        nodes.insert(0, helper.make_node("Relu", [f"m{i}"], [f"r{i}"], name=f"relu{i}"))
        nodes.insert(0, helper.make_node("MatMul", ["x", f"W{i}"], [f"m{i}"], name=f"product{i}"))
    weights = {f"W{i}": _weights(WIDTH, WIDTH, seed=i) for i in range(2)}
    return _model(nodes, weights, ["N", WIDTH], ["N", WIDTH])


def _blocks(load: Callable[..., Array] = load_block) -> da.Array:
    meta = np.empty((0, 0), np.float32)
    chunks = ((ROWS,) * BLOCKS, (WIDTH,))
    return da.map_blocks(load, chunks=chunks, dtype="f4", meta=meta)


def _compute(client: Client, lazy: Any) -> list[Array]:
    found = client.compute(lazy).result()
    return [np.asarray(found)]


def _array_run(client: Client, model: dx.Model, plan: dx.Plan) -> Run:
    return lambda: _compute(client, model.predict(_blocks(), plan=plan, batch_size=None))


def whole(client: Client, folder: Path) -> Run:
    model = dx.load(chain())
    plan = model.plan("whole")
    return lambda: _compute(client, model.predict(_blocks(slow_block), plan=plan, batch_size=None))


def fused(client: Client, folder: Path) -> Run:
    model = dx.load(chain(), replace={"Relu": slow_relu})
    return _array_run(client, model, model.plan("fused", n_stages=2))


def branches(client: Client, folder: Path) -> Run:
    model = dx.load(forked(), replace={"Relu": slow_relu})
    return _array_run(client, model, model.plan("branches"))


def _grouped(client: Client, *, schedule: str | None, is_loose: bool) -> Run:
    model = dx.load(chain(), replace={"Relu": slow_relu})
    plan = model.plan("pipeline", n_stages=2)
    placement = dx.Placement.one_each(len(plan.stages), 2, allow_other_workers=is_loose)
    plan = plan.with_placement(placement)
    if schedule is not None:
        plan = plan.with_schedule(schedule, in_flight=4)
    return _array_run(client, model, plan)


def worker_groups(client: Client, folder: Path) -> Run:
    return _grouped(client, schedule=None, is_loose=False)


def scheduled(client: Client, folder: Path) -> Run:
    return _grouped(client, schedule="async", is_loose=False)


def scheduled_loosely(client: Client, folder: Path) -> Run:
    return _grouped(client, schedule="async", is_loose=True)


def numpy_rows(client: Client, folder: Path) -> Run:
    model = dx.load(chain(), replace={"Relu": slow_relu})
    rows = np.random.default_rng(1).standard_normal((ROWS * BLOCKS, WIDTH)).astype(np.float32)
    plan = model.plan("whole")
    return lambda: [np.asarray(model.predict(rows, plan=plan, batch_size=ROWS))]


def tables(client: Client, folder: Path) -> Run:
    import dask.dataframe as dd

    model = dx.load(chain(), replace={"Relu": slow_relu})
    rows = np.random.default_rng(2).standard_normal((ROWS * BLOCKS, WIDTH)).astype(np.float32)
    frame = dd.from_pandas(
        pd.DataFrame(rows, columns=[f"c{i}" for i in range(WIDTH)]), npartitions=BLOCKS
    )

    def run() -> list[Array]:
        found = client.compute(model.predict(frame, batch_size=None)).result()
        return [np.array(found["y"].tolist(), np.float32), found.index.to_numpy()]

    return run


def bag(client: Client, folder: Path) -> Run:
    import dask.bag as db

    model = dx.load(chain(), replace={"Relu": slow_relu})
    rows = np.random.default_rng(3).standard_normal((8 * BLOCKS, WIDTH)).astype(np.float32)
    items = db.from_sequence(list(rows), npartitions=BLOCKS)
    return lambda: [np.stack(client.compute(model.predict(items)).result())]


def text(client: Client, folder: Path) -> Run:
    import dask.dataframe as dd
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[PAD]", *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["E", "input_ids"], ["e"], name="embed"),
            helper.make_node("Relu", ["e"], ["y"], name="activate"),
        ],
        "encoder",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", "T"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "T", 8])],
        [numpy_helper.from_array(_weights(len(vocabulary), 8), "E")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    encoder = dx.TextModel(dx.load(proto, replace={"Relu": slow_relu}), tokenizer)
    rng = np.random.default_rng(4)
    texts = [" ".join(rng.choice(_WORDS, rng.integers(1, 12))) for _ in range(8 * BLOCKS)]
    series = dd.from_pandas(pd.Series(texts, name="text"), npartitions=BLOCKS)

    def run() -> list[Array]:
        found = client.compute(encoder.predict(series)).result()
        return [np.array(found.to_numpy().tolist(), np.float32), found.index.to_numpy()]

    return run


def _frames() -> list[Array]:
    rng = np.random.default_rng(6)
    return [rng.standard_normal((1, WIDTH)).astype(np.float32) for _ in range(2 * BLOCKS)]


def stream(client: Client, folder: Path) -> Run:
    model = dx.load(chain(), replace={"Relu": slow_relu})
    return lambda: [np.stack([y for _, y in dx.stream(model, _frames(), client)])]


def recurrent() -> onnx.ModelProto:
    """Return x, state -> y = next = Relu(x + state / 2): each frame depends on all before it."""
    names = ("x", "state", "y", "next")
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH]) for name in names
    }
    nodes = [
        helper.make_node("Mul", ["state", "half"], ["kept"], name="decay"),
        helper.make_node("Add", ["x", "kept"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["next"], name="activate"),
        helper.make_node("Identity", ["next"], ["y"], name="read"),
    ]
    half = [numpy_helper.from_array(np.float32([0.5]), "half")]
    inputs, outputs = [values["x"], values["state"]], [values["y"], values["next"]]
    graph = helper.make_graph(nodes, "chaos", inputs, outputs, half)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def stream_with_state(client: Client, folder: Path) -> Run:
    model = dx.load(recurrent(), replace={"Relu": slow_relu})
    state, often = {"next": "state"}, 8

    def run() -> list[Array]:
        found = dx.stream(model, _frames(), client, state=state, checkpoint_every=often)
        return [np.stack([y for _, y in found])]

    return run


def _job(client: Client, folder: Path, *more: str) -> tuple[list[str], Path]:
    """Return the command of a job, and its output; the model and its input are written."""
    model, rows, output = (folder / name for name in ("chain.onnx", "rows.npy", "out.npy"))
    onnx.save(chain(), model)
    count = ROWS * BLOCKS * 2
    np.save(rows, np.random.default_rng(5).standard_normal((count, WIDTH)).astype(np.float32))
    words = [
        *(sys.executable, "-c", "from dask_onnx.cli import run; run()", "predict"),
        *(str(model), str(rows), str(output), "--scheduler", client.scheduler.address),
        *("--pre", "chaos_steps:slow_identity", "--batch-size", str(ROWS), *more),
    ]
    return words, output


def _execute(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": python_path()}
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, env=env)


def _failure(done: subprocess.CompletedProcess[str]) -> RuntimeError:
    return RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")


def command_line(client: Client, folder: Path) -> Run:
    words, output = _job(client, folder, "--overwrite")

    def run() -> list[Array]:
        output.unlink(missing_ok=True)
        done = _execute(words, folder)
        if done.returncode:
            raise _failure(done)
        return [np.load(output, allow_pickle=False)]

    return run


def resumed(client: Client, folder: Path) -> Run:
    """Return a job on the command line that is begun anew, and resumed until it is complete."""
    words, output = _job(client, folder)

    def run() -> list[Array]:
        done = _execute([*words, "--overwrite"], folder)
        for _ in range(_MOST_RESUMPTIONS):
            if not done.returncode:
                return [np.load(output, allow_pickle=False)]
            done = _execute([*words, "--resume"], folder)
        raise _failure(done)

    return run


PLANS: Mapping[str, Callable[[Client, Path], Run]] = {
    "whole": whole,
    "fused": fused,
    "branches": branches,
    "worker groups": worker_groups,
    "scheduled": scheduled,
    "scheduled, loose": scheduled_loosely,
    "numpy": numpy_rows,
    "tables": tables,
    "bag": bag,
    "text": text,
    "stream": stream,
    "stream with state": stream_with_state,
    "command line": command_line,
    "resumed": resumed,
}
"""Plans by the name that tables show."""
RESUMED = ("resumed",)
"""Plans that go on after their scheduler has died."""
