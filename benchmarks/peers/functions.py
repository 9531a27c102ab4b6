"""Functions that a user writes by hand around ONNX Runtime, whatever runs them.

Lines between markers count as lines of user code of each peer that uses them (`user_code.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pandas as pd
import tokenizers
from PIL import Image

Array = npt.NDArray[Any]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SLICE, STEP, CELL_SCORE = 640, 512, 0.3
"""Pixels of a slice of the big picture, pixels to the next one, and the score of a box."""


# user code: session
@functools.cache
def session(model: str, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


# end


# user code: prepared
def prepared(image: Image.Image) -> Array:
    """Return a picture as torchvision prepares it for ImageNet: float32, shape (3, 224, 224)."""
    width, height = image.size
    shorter = min(width, height)
    image = image.resize(
        (256 * width // shorter, 256 * height // shorter), Image.Resampling.BILINEAR
    )
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    return ((pixels - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)


# end


# user code: picture (prepared)
def picture(source: str | IO[bytes]) -> Array:
    with Image.open(source) as image:
        return prepared(image.convert("RGB"))


# end


# user code: picture_vectors (session, picture)
def picture_vectors(
    sources: Iterable[str | IO[bytes]], model: str, batch: int, threads: int = 1
) -> Array:
    """Return the vectors of pictures in files: float32, shape (pictures, 1000)."""
    pictures, running = [picture(source) for source in sources], session(model, threads)
    return np.concatenate(
        [
            running.run(None, {"data": np.stack(pictures[start : start + batch])})[0]
            for start in range(0, len(pictures), batch)
        ]
    )


# end


# user code: probabilities (session)
def probabilities(frame: pd.DataFrame, model: str, batch: int, threads: int = 1) -> pd.DataFrame:
    """Return the probabilities of two classes, with the ids of rows where the table has them."""
    feeds = {
        name: frame[name].to_numpy(object if name in TEXTS else np.float32).reshape(-1, 1)
        for name in COLUMNS
    }
    found = np.concatenate(
        [
            session(model, threads).run(
                ["probabilities"], {name: x[start : start + batch] for name, x in feeds.items()}
            )[0]
            for start in range(0, len(frame), batch)
        ]
    )
    ids = {"id": frame["id"].to_numpy()} if "id" in frame else {}
    return pd.DataFrame(ids | {"p0": found[:, 0], "p1": found[:, 1]})


COLUMNS = ("n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7", "city", "colour", "kind")
TEXTS = ("city", "colour", "kind")
# end


# user code: tokenizer
@functools.cache
def tokenizer(path: str) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_file(path)
    made.no_padding()
    made.enable_truncation(256)
    return made


# end


# user code: sentence_vectors (session, tokenizer)
def sentence_vectors(
    texts: Sequence[str], model: str, tokens: str, batch: int, threads: int = 1
) -> Array:
    """Return the mean vector of each text; texts of similar length run together."""
    encodings = tokenizer(tokens).encode_batch(list(texts))
    order = np.argsort([len(each.ids) for each in encodings], kind="stable")
    vectors = np.empty((len(texts), 384), np.float32)
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        width = max(len(encodings[place].ids) for place in places)
        ids, mask = np.zeros((2, len(places), width), np.int64)
        for row, place in enumerate(places):
            known = encodings[place].ids
            ids[row, : len(known)], mask[row, : len(known)] = known, 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        values = session(model, threads).run(None, feeds)[0]
        weight = mask[..., None].astype(np.float32)
        vectors[places] = (values * weight).sum(axis=1) / weight.sum(axis=1)
    return vectors


# end


# user code: block_vectors (session)
def block_vectors(block: Array, model: str, threads: int = 1) -> Array:
    """Return the mean over tokens of a large encoder's output: float32, shape (rows, 768)."""
    mean: Array = session(model, threads).run(None, {"x": block})[0].mean(axis=1)
    return mean


# end


# user code: slice_boxes (session)
def slice_boxes(page: Array, corner: tuple[int, int], model: str, threads: int = 1) -> Array:
    """Return the boxes of one slice in pixels of the page: x1, y1, x2, y2, score, class."""
    y, x = corner
    pixels = page[y : y + SLICE, x : x + SLICE].astype(np.float32) / 127.5 - 1
    (found,) = session(model, threads).run(None, {"image": pixels.transpose(2, 0, 1)[None]})
    boxes: Array = found[0][found[0, :, 4] >= CELL_SCORE]
    boxes[:, :4] += [x, y, x, y]
    return boxes


# end


# user code: best_of_each
def best_of_each(boxes: Array) -> Array:
    """Return boxes without those that overlap a better one (non-maximum suppression)."""
    boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
    areas, kept = np.prod(boxes[:, 2:4] - boxes[:, :2], axis=1), []
    left = np.arange(len(boxes))
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[left, :2])
        high = np.minimum(boxes[best, 2:4], boxes[left, 2:4])
        common = np.prod(np.clip(high - low, 0, None), axis=1)
        left = left[common / (areas[best] + areas[left] - common) < 0.5]
    return boxes[kept]


# end


def slice_corners(side: int) -> list[tuple[int, int]]:
    starts = range(0, side - SLICE + 1, STEP)
    return [(y, x) for y in starts for x in starts]


def files_of(folder: str) -> list[str]:
    return sorted(str(path) for path in Path(folder).iterdir())
