"""Models exported for one row: run row by row, and rewritten to take any number of rows.

    python benchmarks/freed.py --assets .cache/assets --output benchmarks/results

Each model is fixed to one row as exporters do it: the sizes of its inputs are written into it, and
ONNX Runtime folds the values that depend on them into constants. Contestants, in alternating
rounds: the fixed model, which dask_onnx runs row by row, and the model that `free_batch` returns,
with ``batch_size="auto"``. Reported are rows a second and the difference of the results.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask
import numpy as np
import onnx
import onnxruntime
from common import alternate, median_interval, print_table, write_json
from onnx import TensorProto, helper, numpy_helper

import dask_onnx as dx
from dask_onnx.analysis.freeing import Freed, free_batch
from dask_onnx.api.model import Model
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.onnx_model import load_onnx

Array = np.ndarray[Any, Any]


def resnet(width: int = 64, blocks: int = 4) -> onnx.ModelProto:
    """Return residual blocks of two 3 x 3 convolutions on an image of 3 x 64 x 64.

    As in torch's exports for one image, the Reshape of the head contains the number of rows.
    """
    rng = np.random.default_rng(0)
    nodes, tensors = [], []

    def conv(x: str, y: str, channels: tuple[int, int], stride: int) -> None:
        kernel = rng.standard_normal((channels[1], channels[0], 3, 3)) / (3 * channels[0] ** 0.5)
        tensors.append(numpy_helper.from_array(kernel.astype(np.float32), f"{y}_W"))
        node = helper.make_node("Conv", [x, f"{y}_W"], [y], strides=[stride] * 2, pads=[1] * 4)
        nodes.append(node)

    conv("x", "h0", (3, width), 2)
    for i in range(blocks):
        conv(f"h{i}", f"a{i}", (width, width), 1)
        nodes.append(helper.make_node("Relu", [f"a{i}"], [f"r{i}"]))
        conv(f"r{i}", f"b{i}", (width, width), 1)
        nodes.append(helper.make_node("Add", [f"b{i}", f"h{i}"], [f"s{i}"]))
        nodes.append(helper.make_node("Relu", [f"s{i}"], [f"h{i + 1}"]))
    head = (rng.standard_normal((width, 10)) / width**0.5).astype(np.float32)
    tensors += [
        numpy_helper.from_array(head, "head"),
        numpy_helper.from_array(np.array([1, width]), "flat"),
    ]
    nodes += [
        helper.make_node("GlobalAveragePool", [f"h{blocks}"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "flat"], ["features"]),
        helper.make_node("MatMul", ["features", "head"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 3, 64, 64]), ("y", [1, 10]))
    ]
    graph = helper.make_graph(nodes, "resnet", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tabular(width: int = 32) -> onnx.ModelProto:
    """Return two dense layers on rows of 16 numbers, and a softmax over two classes."""
    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("W1", (16, width)), ("W2", (width, 2)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "W1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "W2"], ["s"]),
        helper.make_node("Softmax", ["s"], ["y"], axis=1),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 16]), ("y", [1, 2]))
    ]
    graph = helper.make_graph(nodes, "tabular", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def fixed(path: Path, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """Write a model with fixed input shapes and folded constants; return its path."""
    model = onnx.load(path)
    for value in model.graph.input:
        if value.name in shapes:
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims, shapes[value.name], strict=True):
                dim.Clear()
                dim.dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / path.name)
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return folder / path.name


def workloads(assets: Path, folder: Path) -> dict[str, tuple[Path, dict[str, Array]]]:
    """Return models for one row, and many rows for each: about a second of work."""
    rng = np.random.default_rng(0)
    onnx.save_model(resnet(), folder / "resnet.onnx")
    onnx.save_model(tabular(), folder / "tabular.onnx")

    def images(rows: int, *shape: int) -> dict[str, Array]:
        return {"x": rng.standard_normal((rows, 3, *shape), dtype=np.float32)}

    tokens: dict[str, Array] = {
        "input_ids": rng.integers(999, 20_000, (64, 32)),
        "attention_mask": np.ones((64, 32), np.int64),
        "token_type_ids": np.zeros((64, 32), np.int64),
    }
    feeds = {
        "cls": images(128, 48, 192),
        "det": images(12, 320, 320),
        "minilm": tokens,
        "deepcut": {
            "input_1": rng.integers(0, 178, (2048, 21)).astype(np.float32),
            "input_2": rng.integers(0, 12, (2048, 21)).astype(np.float32),
        },
        "magika": {"bytes": rng.integers(0, 257, (64, 2048)).astype(np.int32)},
    }
    table: dict[str, Array] = {"x": rng.standard_normal((20_000, 16), dtype=np.float32)}
    found = {
        "tabular": (folder / "tabular.onnx", table),
        "resnet": (folder / "resnet.onnx", images(64, 64, 64)),
    }
    for name, each in feeds.items():
        shapes = {key: (1, *array.shape[1:]) for key, array in each.items()}
        found[name] = (fixed(assets / f"{name}.onnx", folder, shapes), each)
    return found


def measure(path: Path, feeds: dict[str, Array], options: argparse.Namespace) -> dict[str, Any]:
    original = load_onnx(path)
    freed = free_batch(original, schemas=ModelFacts(original).schemas)
    if not isinstance(freed, Freed):
        raise SystemExit(f"{path.stem} keeps its batch: {freed}")
    session = dx.SessionSpec(intra_op_num_threads=options.threads)
    models = {"row by row": dx.load(path), "freed": Model(freed.model)}
    plans = {name: model.plan(session=session) for name, model in models.items()}
    results: dict[str, Array] = {}

    def predict(name: str) -> None:
        found = models[name].predict(feeds, plan=plans[name])
        results[name] = next(iter(found.values())) if isinstance(found, dict) else found

    with dask.config.set(scheduler="sync"):
        for _ in range(3):  # "auto" measures the best number of rows in these runs
            predict("freed")
        predict("row by row")
        seconds = alternate({name: lambda n=name: predict(n) for name in models}, options.rounds)
    pairs = zip(seconds["row by row"], seconds["freed"], strict=True)
    apart = np.abs(results["freed"] - results["row by row"]).max()
    rows = len(next(iter(feeds.values())))
    return {
        "rows": rows,
        "rewritten_nodes": len(freed.opened.changes),
        "rows_per_second": {n: rows / float(np.median(s)) for n, s in seconds.items()},
        "freed_over_row_by_row": median_interval([a / b for a, b in pairs]),
        "difference": float(apart / np.abs(results["row by row"]).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--only", nargs="+", help="names of workloads")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime; 0: all cores")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"onnx.store.directory": f"{folder}/store"}),
    ):
        found = {
            name: measure(path, feeds, options)
            for name, (path, feeds) in workloads(options.assets, Path(folder)).items()
            if not options.only or name in options.only
        }
    print_table(
        "models for one row",
        ["", "rows/s as exported", "rows/s freed", "ratio (95 %)", "difference"],
        [
            [
                name,
                f"{each['rows_per_second']['row by row']:,.1f}",
                f"{each['rows_per_second']['freed']:,.1f}",
                "{:.2f} ({:.2f}-{:.2f})".format(*each["freed_over_row_by_row"]),
                f"{each['difference']:.1e}",
            ]
            for name, each in found.items()
        ],
    )
    if options.output:
        write_json(options.output, "freed", found)


if __name__ == "__main__":
    main()
