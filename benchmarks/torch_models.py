"""Small models of PyTorch with random weights, one for each way in which rows go through a graph.

Each is a `Case`: a module, its inputs for any number of rows, and the axes that an export leaves
open. `torch_exports.py` exports and compares them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One model and what is needed to export it and to run it."""

    make: Callable[[], nn.Module]
    """Function that builds the module."""
    feeds: Callable[[int, np.random.Generator], Feeds]
    """Function of a number of rows that returns inputs by name, in the module's order."""
    open_axes: Mapping[str, Mapping[int, str]]
    """Open axes of inputs and outputs: name to axis to symbol."""
    outputs: tuple[str, ...] = ("y",)
    """Names of the outputs."""
    is_scripted: bool = False
    """True if the tracing exporter gets the module compiled by ``torch.jit.script``, so that its
    control flow becomes If and Loop."""
    exporters: tuple[str, ...] = ("dynamo", "trace")
    """Exporters that can export the module."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further options of ``torch.onnx.export`` by exporter."""
    after: Callable[[str], None] | None = None
    """Function that changes the exported file, by its path."""
    limit: float = 2e-4
    """Largest relative difference that counts as rounding. ONNX Runtime computes a whole quantised
    graph with 8-bit kernels, and its single nodes in floating point."""


CASES: dict[str, Callable[[], Case]] = {}
"""Models by name; each is made when it is asked for."""


def case(function: Callable[[], Case]) -> Callable[[], Case]:
    CASES[function.__name__.replace("_", "-")] = function
    return function


def normal(*shape: int) -> Callable[[int, np.random.Generator], np.ndarray]:
    """Return a function that draws float32 values; a size of 0 stands for the number of rows."""

    def draw(rows: int, rng: np.random.Generator) -> np.ndarray:
        return rng.standard_normal([size or rows for size in shape]).astype(np.float32)

    return draw


def integers(high: int, *shape: int) -> Callable[[int, np.random.Generator], np.ndarray]:
    """Return a function that draws int64 below `high`; a size of 0 is the number of rows."""

    def draw(rows: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, high, [size or rows for size in shape])

    return draw


def named(
    **draws: Callable[[int, np.random.Generator], np.ndarray],
) -> Callable[[int, np.random.Generator], Feeds]:
    """Return the function `Case.feeds` that draws each input."""
    return lambda rows, rng: {name: draw(rows, rng) for name, draw in draws.items()}


BATCH = {0: "batch"}


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(4, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.body(x))


class ResNet(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 5, stride=2, padding=2)
        self.blocks = nn.Sequential(Residual(width), nn.MaxPool2d(2), Residual(width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1)
        return self.head(pooled.view(x.size(0), -1)).softmax(-1)


@case
def resnet() -> Case:
    return Case(ResNet, named(x=normal(0, 3, 32, 32)), {"x": BATCH, "y": BATCH})


class FixedBatch(nn.Module):
    """A number of rows as a constant in a Reshape and in an initial state, as exports often have.

    Takes two rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.rnn = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).reshape(2, 8, 64).transpose(1, 2)
        return self.rnn(tokens, torch.zeros(1, 2, 8))[0].mean(1)


@case
def fixed_batch() -> Case:
    return Case(FixedBatch, named(x=normal(0, 3, 8, 8)), {"x": BATCH, "y": BATCH})


def _encoder(is_batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=is_batch_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@case
def encoder() -> Case:
    axes = {0: "batch", 1: "time"}
    return Case(
        functools.partial(_encoder, True), named(x=normal(0, 6, 32)), {"x": axes, "y": axes}
    )


@case
def encoder_time_first() -> Case:
    axes = {0: "time", 1: "batch"}
    return Case(
        functools.partial(_encoder, False), named(x=normal(6, 0, 32)), {"x": axes, "y": axes}
    )


class MaskedEncoder(nn.Module):
    """Token encoder with a padding mask and a mean over the tokens that count."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 32)
        self.places = nn.Embedding(16, 32)
        self.body = _encoder(True)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        h = self.tokens(ids) + self.places(places)
        h = self.body(h, src_key_padding_mask=mask == 0)
        weights = mask.unsqueeze(-1).to(h.dtype)
        return (h * weights).sum(1) / weights.sum(1).clamp(min=1e-6)


@case
def masked_encoder() -> Case:
    def feeds(rows: int, rng: np.random.Generator) -> Feeds:
        mask = np.arange(8) < rng.integers(2, 9, (rows, 1))
        return {"ids": rng.integers(0, 50, (rows, 8)), "mask": mask.astype(np.int64)}

    axes = {0: "batch", 1: "time"}
    return Case(MaskedEncoder, feeds, {"ids": axes, "mask": axes, "y": BATCH})


class CachedDecoder(nn.Module):
    """One step of a decoder that attends to the keys and values of earlier tokens."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(50, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, 50)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(
        self, ids: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        h = self.tokens(ids)
        key = torch.cat([past_key, self._split(self.key(h))], 2)
        value = torch.cat([past_value, self._split(self.value(h))], 2)
        h = h + functional.scaled_dot_product_attention(
            self._split(self.query(h)), key, value
        ).transpose(1, 2).reshape(h.shape)
        return self.head(h), key, value


@case
def cached_decoder() -> Case:
    past = {0: "batch", 2: "past"}
    return Case(
        CachedDecoder,
        named(ids=integers(50, 0, 1), past_key=normal(0, 4, 5, 8), past_value=normal(0, 4, 5, 8)),
        {"ids": BATCH, "past_key": past, "past_value": past, "y": BATCH},
        ("y", "key", "value"),
    )


class Recurrent(nn.Module):
    """A recurrent network with all of its outputs."""

    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(6, 8, **options)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        return y


class Stateful(nn.Module):
    """An LSTM whose states come in and go out, shape (layers, batch, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, 2, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.rnn(x, (h, c))
        return y, h, c


@case
def lstm() -> Case:
    axes = {0: "batch", 1: "time"}
    make = functools.partial(Recurrent, nn.LSTM, batch_first=True, num_layers=2)
    return Case(make, named(x=normal(0, 5, 6)), {"x": axes, "y": axes})


@case
def lstm_time_first() -> Case:
    make = functools.partial(Recurrent, nn.LSTM)
    return Case(make, named(x=normal(5, 0, 6)), {"x": {1: "batch"}, "y": {1: "batch"}})


@case
def gru_both_ways() -> Case:
    make = functools.partial(Recurrent, nn.GRU, bidirectional=True, batch_first=True)
    return Case(make, named(x=normal(0, 5, 6)), {"x": BATCH, "y": BATCH})


@case
def gru_time_first_both_ways() -> Case:
    axes = {0: "time", 1: "batch"}
    make = functools.partial(Recurrent, nn.GRU, bidirectional=True)
    return Case(make, named(x=normal(5, 0, 6)), {"x": axes, "y": axes})


@case
def lstm_with_state() -> Case:
    state = {1: "batch"}
    return Case(
        Stateful,
        named(x=normal(0, 5, 6), h=normal(2, 0, 8), c=normal(2, 0, 8)),
        {"x": BATCH, "h": state, "c": state, "y": BATCH, "h_out": state, "c_out": state},
        ("y", "h_out", "c_out"),
    )


class UNet(nn.Module):
    """A U-Net that a time step modulates, as in diffusion models."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inward = nn.Conv2d(4, width, 3, padding=1)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.middle = Residual(width)
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.outward = nn.Conv2d(2 * width, 4, 1)
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        frequencies = torch.exp(torch.arange(8) * (-math.log(10000.0) / 8))
        angles = timestep[:, None].float() * frequencies[None]
        moved = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        x = self.inward(sample)
        h = self.middle(self.down(x) + moved[:, :, None, None])
        h = functional.interpolate(h, scale_factor=1.0) + functional.interpolate(
            functional.avg_pool2d(x, 2), size=h.shape[2:], mode="bilinear"
        )
        return self.outward(torch.cat([self.up(h), x], 1))


@case
def unet() -> Case:
    axes = {0: "batch"}
    return Case(
        UNet,
        named(sample=normal(0, 4, 16, 16), timestep=integers(1000, 0)),
        {"sample": axes, "timestep": {0: "batch"}, "y": axes},
    )


@case
def unet_one_timestep() -> Case:
    return Case(
        UNet,
        named(sample=normal(0, 4, 16, 16), timestep=integers(1000, 1)),
        {"sample": {0: "batch"}, "timestep": {}, "y": {0: "batch"}},
    )


class TwoTowers(nn.Module):
    """Similarities of pictures and texts, as in CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(48, 16))
        self.tokens = nn.Embedding(50, 16)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        image = functional.normalize(self.image(pixels), dim=-1)
        text = functional.normalize(self.tokens(ids).mean(1), dim=-1)
        of_image = self.scale.exp() * image @ text.t()
        return of_image, of_image.t()


@case
def two_towers() -> Case:
    return Case(
        TwoTowers,
        named(pixels=normal(0, 3, 4, 4), ids=integers(50, 3, 7)),
        {
            "pixels": {0: "images"},
            "ids": {0: "texts"},
            "of_image": {0: "images", 1: "texts"},
            "of_text": {0: "texts", 1: "images"},
        },
        ("of_image", "of_text"),
    )
