"""Cases of quantised numbers, attention and signals."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from kernel_case import Case, floats, generator, product, texts


def _quantised() -> Iterator[Case]:
    x = np.array([[-300, -1.5, -0.5, 0.5], [1.5, 2.5, 260, 1e9]], np.float32)
    for dtype in (np.uint8, np.int8, np.uint16, np.int16):
        scale, zero = np.array(0.5, np.float32), np.array(3, dtype)
        yield Case("QuantizeLinear", (x, scale, zero), {})
        yield Case(
            "QuantizeLinear",
            (x, np.array([0.5, 2], np.float32), np.array([3, 1], dtype)),
            {"axis": 0},
        )
        q = np.array([[0, 1, 100, 127]], dtype)
        yield Case("DequantizeLinear", (q, scale, zero), {})
    blocks = np.array([[0.5, 2], [1, 4]], np.float32)
    yield Case(
        "QuantizeLinear", (x, blocks, np.zeros((2, 2), np.int8)), {"axis": 1, "block_size": 2}
    )
    yield Case("DynamicQuantizeLinear", (floats(4, 5),), {}, outputs=3)
    a, b = (generator().integers(0, 255, (3, 3)).astype(np.uint8) for _ in range(2))
    scale, zero = np.array(0.05, np.float32), np.array(100, np.uint8)
    yield Case(
        "QLinearMatMul", (a, scale, zero, b, scale, zero, np.array(2.0, np.float32), zero), {}
    )
    yield Case("MatMulInteger", (a, b, zero, zero), {})
    yield Case("MatMulInteger", (a, b, np.array([1, 2, 3], np.uint8)), {})
    values = np.array([0, -1.5, 2.5, 447, 449, 1e6, -1e6, 2**-10, np.inf, np.nan], np.float32)
    for element in (10, 11, 16, 17, 18, 19, 20):
        yield Case("Cast", (values,), {"to": element})
    for element in (2, 3, 5, 6, 7, 9):
        yield Case("Cast", (np.array([-1.7, 0, 1.7, 100.5], np.float32),), {"to": element})
    yield Case("Cast", (np.array([0, 1.5, -1e-7, 1e20, 123456789], np.float32),), {"to": 8})
    yield Case("Cast", (texts("1.5", "-3", "1e3"),), {"to": 1})


def _attentions() -> Iterator[Case]:
    q, k, v = floats(2, 4, 3, 8), floats(2, 4, 5, 8), floats(2, 4, 5, 8)
    mask = floats(3, 5)
    for given in product(is_causal=(0, 1), softcap=(None, 2.0), scale=(None, 0.3)):
        yield Case("Attention", (q, k, v), given, opset=23)
        yield Case("Attention", (q, k, v, mask), given, opset=23)
        yield Case("Attention", (q, k[:, :2], v[:, :2]), given, opset=23)
        yield Case("Attention", (q, k, v, mask > 0.5), given, opset=23)
        flat = {**given, "q_num_heads": 2, "kv_num_heads": 1}
        yield Case("Attention", (floats(2, 3, 8), floats(2, 5, 4), floats(2, 5, 4)), flat, opset=23)
    cache = floats(6, 4)
    for given in product(interleaved=(0, 1), rotary_embedding_dim=(None, 4)):
        half = cache[:, : given.get("rotary_embedding_dim", 8) // 2]
        places = np.array([[0, 1, 2], [3, 1, 5]])
        yield Case("RotaryEmbedding", (q, half, half, places), given, opset=23)
        yield Case(
            "RotaryEmbedding",
            (floats(2, 3, 16), half, half, places),
            {**given, "num_heads": 2},
            opset=23,
        )
    for given in product(ignore_index=(None, 1), reduction=("none", "sum", "mean")):
        labels = np.array([[0, 1, 2], [1, 1, 0]])
        scores, weights = floats(2, 3, 3), np.array([0.2, 0.3, 0.5], np.float32)
        for extra in ((), (weights,)):
            yield Case("SoftmaxCrossEntropyLoss", (scores, labels, *extra), given)
            yield Case("NegativeLogLikelihoodLoss", (scores, labels, *extra), given)


def _signals() -> Iterator[Case]:
    for given in product(inverse=(0, 1), onesided=(0, 1)):
        if given["inverse"] and given["onesided"]:
            continue
        for length in (None, 16, 5):
            extra = () if length is None else (np.array(length),)
            if not given["onesided"]:
                yield Case("DFT", (floats(2, 8, 2), *extra), {**given, "axis": 1}, opset=17)
            yield Case("DFT", (floats(2, 8, 1), *extra), {**given, "axis": 1}, opset=17)
    step, window = np.array(2), np.hanning(6).astype(np.float32)
    for onesided in (0, 1):
        for shape in ((3, 16), (1, 16), (3, 16, 1), (1, 16, 1)):
            inputs = (floats(*shape), step, window)
            yield Case("STFT", inputs, {"onesided": onesided}, constants=(1,))
            inputs = (floats(*shape), step, None, np.array(8))
            yield Case("STFT", inputs, {"onesided": onesided}, constants=(1, 3))
    yield Case("STFT", (floats(2, 16, 2), step, window), {"onesided": 0}, constants=(1,))
    windows = ("BlackmanWindow", "HammingWindow", "HannWindow")
    for op, periodic in itertools.product(windows, (0, 1)):
        yield Case(op, (np.array(9),), {"periodic": periodic})


CASES = (
    _quantised,
    _attentions,
    _signals,
)
"""Functions that yield the cases of this module."""
