"""Models and files of each job, and the comparison of results."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import functions
import numpy as np
import onnx
import pandas as pd
import pyarrow.dataset
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_sample_image
from work import Result, Work

sys.path.insert(0, str(Path(__file__).parents[1]))
import tabular
from common import timed
from text import corpus
from throughput import squeezenet
from transformer import WIDTH, make_transformer

_CELL = 32
"""Pixels of a side of a box of the big picture's detector."""
_ROWS_OF_BLOCK = 4
_TOKENS = 64


@dataclass(frozen=True)
class Sizes:
    """Amount of work of each job."""

    pictures: int
    rows: int
    sentences: int
    blocks: int
    side: int
    """Pixels of a side of the big picture: a slice and a whole number of steps."""


FULL = Sizes(480, 5_000_000, 20_000, 24, functions.SLICE + 6 * functions.STEP)
SHORT = Sizes(192, 500_000, 2_000, 6, functions.SLICE + 2 * functions.STEP)


def _work(job: str, folder: Path, model: Path, files: Path, batch: int, **more: Any) -> Work:
    output = folder / "output" if job in ("table", "sentences") else None
    return Work(
        job=job,
        model=str(model),
        folder=str(files),
        files=tuple(sorted(str(path) for path in files.iterdir())),
        output=str(output or ""),
        batch=batch,
        chunk=more.pop("chunk", 1),
        **more,
    )


def _quickest(sizes: tuple[int, ...], run: Callable[[int], Any]) -> int:
    """Return the rows of a run with which ONNX Runtime alone is fastest."""
    seconds = {size: min(timed(lambda size=size: run(size)) for _ in range(3)) for size in sizes}
    return min(seconds, key=lambda size: seconds[size])


def encoder_of_pictures(folder: Path) -> Path:
    """Write SqueezeNet up to its pooled features: data (N, 3, 224, 224) -> vector (N, 1000)."""
    model = onnx.load(squeezenet(folder, is_open=True))
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.CopyFrom(helper.make_node("Flatten", [softmax.input[0]], ["vector"]))
    data = next(value for value in model.graph.input if value.name.startswith("data"))
    for node in model.graph.node:
        node.input[:] = ["data" if name == data.name else name for name in node.input]
    data.name = "data"
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["N", 1000])
    )
    onnx.save(model, folder / "encoder.onnx")
    return folder / "encoder.onnx"


def images(folder: Path, assets: Path, sizes: Sizes) -> Work:
    files, rng = folder / "pictures", np.random.default_rng(0)
    files.mkdir()
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    for name in ("page.png", "text.png"):
        with Image.open(assets / name) as page:
            photos.append(np.asarray(page.convert("RGB").resize((900, 600))))
    for number in range(sizes.pictures):
        photo = photos[number % len(photos)]
        y, x = (rng.integers(0, n - m) for n, m in zip(photo.shape, (320, 480), strict=False))
        image = Image.fromarray(photo[y : y + 320, x : x + 480][:, :: rng.choice([-1, 1])])
        image.save(files / f"{number:05d}.jpg", quality=90)
    model = encoder_of_pictures(folder)
    some = [str(path) for path in sorted(files.iterdir())[:24]]
    batch = _quickest((1, 4, 8, 24), lambda n: functions.picture_vectors(some, str(model), n))
    return _work("images", folder, model, files, batch, chunk=24)


def table(folder: Path, assets: Path, sizes: Sizes) -> Work:
    files, partitions = folder / "rows", 40
    files.mkdir()
    model, estimator = tabular.make_models(folder)
    for number in range(partitions):
        rows = np.arange(number, sizes.rows, partitions)
        frame, _ = tabular.table(len(rows), number + 1)
        frame.insert(0, "id", rows)
        frame.to_parquet(files / f"part-{number:04d}.parquet", index=False)
    part = pd.read_parquet(min(files.iterdir()))
    batch = _quickest(tabular.SIZES, lambda n: functions.probabilities(part, model, n))
    return _work("table", folder, Path(model), files, batch, estimator=estimator)


def sentences(folder: Path, assets: Path, sizes: Sizes) -> Work:
    files, partitions = folder / "sentences", 40
    files.mkdir()
    frame = pd.DataFrame({"id": np.arange(sizes.sentences), "text": corpus(sizes.sentences)})
    for number in range(partitions):
        frame[number::partitions].to_parquet(files / f"part-{number:04d}.parquet", index=False)
    model, tokens = assets / "minilm.onnx", str(assets / "minilm_tokenizer.json")
    some = list(frame["text"][:256])
    batch = _quickest(
        (4, 8, 16, 32), lambda n: functions.sentence_vectors(some, str(model), tokens, n)
    )
    return _work("sentences", folder, model, files, batch, tokens=tokens)


def large(folder: Path, assets: Path, sizes: Sizes) -> Work:
    files, rng = folder / "blocks", np.random.default_rng(0)
    files.mkdir()
    for number in range(sizes.blocks):
        block = rng.standard_normal((_ROWS_OF_BLOCK, _TOKENS, WIDTH), dtype=np.float32)
        np.save(files / f"{number:04d}.npy", block)
    model = make_transformer(folder / "transformer.onnx")
    return _work("large", folder, model, files, _ROWS_OF_BLOCK)


def detector(folder: Path, assets: Path) -> Path:
    """Write PP-OCR detection with a box for each cell: image (1, 3, S, S) -> found (1, n, 6)."""
    model = onnx.load(assets / "det.onnx")
    graph, cells = model.graph, functions.SLICE // _CELL
    (pixels,), (score,) = graph.input, graph.output
    for node in graph.node:
        node.input[:] = ["image" if name == pixels.name else name for name in node.input]
    y, x = _CELL * np.mgrid[:cells, :cells].reshape(2, -1).astype(np.float32)
    corners = np.stack([x, y, x + _CELL, y + _CELL], axis=1)[None]
    constants = {
        "corners": corners,
        "labels": np.zeros((1, cells**2, 1), np.float32),
        "scores_shape": np.array([1, cells**2, 1]),
    }
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in constants.items())
    side = [_CELL, _CELL]
    graph.node.extend(
        [
            helper.make_node(
                "AveragePool", [score.name], ["cells"], kernel_shape=side, strides=side
            ),
            helper.make_node("Reshape", ["cells", "scores_shape"], ["scores"]),
            helper.make_node("Concat", ["corners", "scores", "labels"], ["found"], axis=2),
        ]
    )
    del graph.input[:], graph.output[:], graph.value_info[:]
    shape = [1, 3, functions.SLICE, functions.SLICE]
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, shape))
    shape = [1, cells**2, 6]
    graph.output.append(helper.make_tensor_value_info("found", TensorProto.FLOAT, shape))
    onnx.save(model, folder / "detector.onnx")
    return folder / "detector.onnx"


def picture(folder: Path, assets: Path, sizes: Sizes) -> Work:
    files = folder / "picture"
    files.mkdir()
    with Image.open(assets / "page.png") as image:
        page = np.asarray(image.convert("RGB"))
    repeats = [-(-sizes.side // length) for length in page.shape[:2]]
    page = np.tile(page, (*repeats, 1))[: sizes.side, : sizes.side]
    # Stripes of different light, so that no two slices are alike.
    light = np.linspace(0.7, 1, sizes.side)[:, None, None]
    np.save(files / "page.npy", (page * light).astype(np.uint8))
    return _work("picture", folder, detector(folder, assets), files, 1)


MAKERS: dict[str, Callable[[Path, Path, Sizes], Work]] = {
    "images": images,
    "table": table,
    "sentences": sentences,
    "large": large,
    "picture": picture,
    "killed": images,
}
"""Job to the function that makes its files; `killed` is `images` with the loss of a worker."""

TOLERANCES = {"images": 1e-3, "table": 1e-4, "sentences": 1e-3, "large": 1e-3, "picture": 1e-3}
"""Differences that other numbers of threads, and other rows of a run, may make."""


def _values(work: Work, saved: Path) -> np.ndarray:
    """Return the result of a run in one order: float64, shape (rows, numbers of a row)."""
    if work.output:
        files = pyarrow.dataset.dataset(work.output, format="parquet")
        # Without pandas' metadata an index that was written is a column.
        table = files.to_table().to_pandas(ignore_metadata=True)
        if "id" in table:
            table = table.sort_values("id").drop(columns="id")
        if "embedding" in table:
            return np.stack(table["embedding"]).astype(np.float64)
        return table.to_numpy(np.float64)
    with np.load(saved) as found:
        values = found["values"].astype(np.float64)
        if "names" in found:
            values = values[np.argsort(found["names"])]
            assert len(set(found["names"])) == len(found["names"]), "a file came twice"
        else:  # boxes, in any order
            values = values[np.lexsort(values[:, 3::-1].round().T)]
    return values.reshape(len(values), -1)


def result_of(work: Work, saved: Path) -> Result:
    """Return the values of the last run, which `saved` or the output folder holds."""
    return {"values": _values(work, saved)}


def difference(work: Work, found: Result, expected: Result) -> dict[str, Any]:
    """Return the largest difference, and whether the result is right."""
    a, b = found["values"], expected["values"]
    if a.shape != b.shape:
        return {"largest_difference": None, "right": False, "why": f"{a.shape}, not {b.shape}"}
    gaps = np.abs(a - b)
    share = float(np.mean(gaps > TOLERANCES[work.job]))
    # scikit-learn computes in float64, which may put a row on the other side of a split.
    allowed = 1e-3 if work.job == "table" else 0
    return {
        "largest_difference": float(gaps.max()),
        "share_that_differs": share,
        "right": bool(share <= allowed and np.isfinite(a).all()),
    }
