"""Three models of PP-OCR as a chain: text equal to that of a loop over ONNX Runtime's sessions."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image, ImageDraw, ImageFont

import dask_onnx as dx

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
WORDS = [["stream", "worker"], [], ["graph"], ["cluster", "camera", "table"]]


def tensor(picture):
    return np.ascontiguousarray(((picture.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1))


def resized(picture, height, width):
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


def lines_of(maps, frame):
    """Return the lines of a page, from top to bottom: the bands of rows with text."""
    has_text = (maps[0] > 0.3).any(axis=1)
    edges = np.flatnonzero(np.diff(np.r_[False, has_text, False].astype(int)))
    return [frame[max(0, a - 4) : b + 4] for a, b in edges.reshape(-1, 2)]


def upright(lines_of):
    return [tensor(resized(line, 48, 192)) for line in lines_of]


def turned(scores, lines_of):
    lines = [
        line[::-1, ::-1] if score[1] > 0.9 else line
        for score, line in zip(scores, lines_of, strict=True)
    ]
    return [tensor(resized(np.ascontiguousarray(line), 48, 320)) for line in lines]


def codes(scores):
    """Return the best classes of each line, without repetitions and blanks."""
    found = []
    for line in scores:
        best = line.argmax(axis=-1)
        kept = np.r_[True, best[1:] != best[:-1]] & (best != 0)
        found.append(best[kept].tolist())
    return found


def text_of(path, found):
    properties = {each.key: each.value for each in onnx.load(path).metadata_props}
    characters = ["", *properties["character"].splitlines(), " "]
    return ["".join(characters[code] for code in line) for line in found]


def page_of(words):
    page = Image.new("RGB", (256, 160), "white")
    font = ImageFont.load_default(size=26)
    for place, word in enumerate(words):
        ImageDraw.Draw(page).text((12, 8 + 50 * place), word, fill="black", font=font)
    return np.asarray(page)


def test_batch_and_stream_read_what_a_loop_reads(asset, client):
    pages = [page_of(words) for words in WORDS]
    paths = [asset(f"{name}.onnx") for name in ("det", "cls", "rec")]
    sessions = [onnxruntime.InferenceSession(path) for path in paths]

    def run(place, item):
        session = sessions[place]
        return session.run(None, {session.get_inputs()[0].name: item[None]})[0][0]

    by_hand = []
    for page in pages:
        lines = lines_of(run(0, tensor(page)), page)
        scores = [run(1, item) for item in upright(lines)]
        by_hand.append(codes([run(2, item) for item in turned(scores, lines)]))
    detector, classifier, reader = map(dx.load, paths)
    chain = dx.chain(tensor, detector, lines_of, upright, classifier, turned, reader, codes)
    assert chain.predict(pages, frames_per_task=2) == by_hand
    found = dict(chain.stream(pages, client))
    assert [found[index] for index in range(len(pages))] == by_hand
    assert dict(chain.stream(pages, client, micro_batch=2)) == found
    texts = [[text.lower() for text in text_of(paths[2], lines)] for lines in by_hand]
    assert texts == WORDS  # a stretched letter may come out as a capital
