"""Further models of PyTorch for `torch_exports.py`: graphs, detectors, audio, control flow."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_models import BATCH, Case, Feeds, case, integers, named, normal


class GraphNetwork(nn.Module):
    """Two rounds of messages along edges, summed at their targets."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges[0], edges[1]
        for layer in (self.first, self.second):
            messages = layer(x)[source]
            total = torch.zeros(x.shape[0], messages.shape[1])
            x = total.index_add(0, target, messages)
        return x


@case
def graph_network() -> Case:
    def feeds(rows: int, rng: np.random.Generator) -> Feeds:
        # As many edges as nodes: equal sizes must not be taken for equal axes.
        return {
            "x": rng.standard_normal((rows, 4)).astype(np.float32),
            "edges": rng.integers(0, rows, (2, rows)),
        }

    return Case(GraphNetwork, feeds, {"x": {0: "nodes"}, "edges": {1: "edges"}, "y": {0: "nodes"}})


class ScatterNetwork(nn.Module):
    """Mean of the messages at each node, by scatter_add over expanded indices."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        messages = self.layer(x).index_select(0, source)
        index = target.unsqueeze(1).expand(-1, 8)
        total = torch.zeros(x.shape[0], 8).scatter_add(0, index, messages)
        count = torch.zeros(x.shape[0]).scatter_add(0, target, torch.ones_like(target).float())
        return total / count.clamp(min=1).unsqueeze(1)


@case
def scatter_network() -> Case:
    def feeds(rows: int, rng: np.random.Generator) -> Feeds:
        return {
            "x": rng.standard_normal((rows, 4)).astype(np.float32),
            "source": rng.integers(0, rows, rows),
            "target": rng.integers(0, rows, rows),
        }

    edges = {0: "edges"}
    return Case(
        ScatterNetwork, feeds, {"x": {0: "nodes"}, "source": edges, "target": edges, "y": BATCH}
    )


class Boxes(nn.Module):
    """A detector without its suppression of overlapping boxes: (rows, boxes, 4 + classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.SiLU(), nn.Conv2d(8, 6, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        grid = self.body(x).flatten(2).transpose(1, 2)
        middle, size = grid[..., :2].sigmoid(), grid[..., 2:4].exp()
        boxes = torch.cat([middle - size / 2, middle + size / 2], -1)
        return torch.cat([boxes, grid[..., 4:].sigmoid()], -1)


@case
def detector() -> Case:
    return Case(Boxes, named(x=normal(0, 3, 32, 32)), {"x": BATCH, "y": BATCH})


class TopBoxes(Boxes):
    """The best boxes of each picture, by topk and gather: end to end without suppression."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # two results
        found = super().forward(x)
        scores, places = found[..., 4:].amax(-1).topk(5, dim=1)
        return found[..., :4].gather(1, places.unsqueeze(-1).expand(-1, -1, 4)), scores


@case
def detector_top_boxes() -> Case:
    return Case(
        TopBoxes,
        named(x=normal(0, 3, 32, 32)),
        {"x": BATCH, "boxes": BATCH, "scores": BATCH},
        ("boxes", "scores"),
    )


class Spectrogram(nn.Module):
    """Mel-like spectrogram of each signal, then a convolution over time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(32))
        self.register_buffer("mel", torch.rand(17, 8))
        self.conv = nn.Conv1d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.stft(
            x, 32, hop_length=16, window=self.window, center=False, return_complex=False
        )
        power = found.pow(2).sum(-1)
        mel = torch.log(power.transpose(1, 2) @ self.mel + 1e-6)
        return self.conv(mel.transpose(1, 2))


@case
def spectrogram() -> Case:
    return Case(Spectrogram, named(x=normal(0, 320)), {"x": BATCH, "y": BATCH})


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.places = nn.Parameter(torch.randn(1, 17, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.places
        return self.head(self.body(tokens)[:, 0])


@case
def vision_transformer() -> Case:
    return Case(VisionTransformer, named(x=normal(0, 3, 32, 32)), {"x": BATCH, "y": BATCH})


class Windows(nn.Module):
    """Attention inside shifted windows, as in Swin: rows and windows share an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows, height, width, channels = x.shape
        x = torch.roll(x, (-2, -2), (1, 2))
        cut = x.view(rows, height // 4, 4, width // 4, 4, channels)
        cut = cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels)
        out, _ = self.attention(cut, cut, cut, need_weights=False)
        out = out.view(-1, height // 4, width // 4, 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        return torch.roll(out.reshape(rows, height, width, channels), (2, 2), (1, 2))


@case
def shifted_windows() -> Case:
    return Case(Windows, named(x=normal(0, 8, 8, 16)), {"x": BATCH, "y": BATCH})


class Warp(nn.Module):
    """A spatial transformer: affine_grid and grid_sample by what each picture predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Linear(48, 6)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.where(x.flatten(1)).view(-1, 2, 3)
        grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
        return functional.pixel_shuffle(functional.grid_sample(x, grid, align_corners=False), 1)


@case
def spatial_transformer() -> Case:
    return Case(Warp, named(x=normal(0, 3, 4, 4)), {"x": BATCH, "y": BATCH})


class Experts(nn.Module):
    """A mixture of experts: each token goes to one, found by a mask and index_add."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 8)
        chosen = self.gate(flat).softmax(-1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            out = out + expert(flat) * chosen[:, number : number + 1]
        return out.view(x.shape)


@case
def experts() -> Case:
    return Case(Experts, named(x=normal(0, 5, 8)), {"x": BATCH, "y": BATCH})


class SparseExperts(Experts):
    """A mixture of experts that runs each expert on its own tokens only."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 8)
        chosen = self.gate(flat).argmax(-1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            places = torch.nonzero(chosen == number).squeeze(1)
            out = out.index_add(0, places, expert(flat[places]))
        return out.view(x.shape)


@case
def sparse_experts() -> Case:
    return Case(
        SparseExperts, named(x=normal(0, 5, 8)), {"x": BATCH, "y": BATCH}, exporters=("trace",)
    )


class RowLoop(nn.Module):
    """A loop over time and a branch by value, which scripting keeps as Loop and If."""

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.size(0), x.size(2))
        for step in range(x.size(1)):
            state = 0.5 * state + x[:, step]
        return state.relu() if x.size(1) > 3 else -state


@case
def scripted_loop() -> Case:
    axes = {0: "batch", 1: "time"}
    return Case(
        RowLoop,
        named(x=normal(0, 5, 4)),
        {"x": axes, "y": BATCH},
        is_scripted=True,
        exporters=("trace",),
    )


class ByMean(nn.Module):
    """A branch that depends on all rows: they must not be cut."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0 else x - x.mean(0)


@case
def scripted_branch_on_all_rows() -> Case:
    return Case(
        ByMean,
        named(x=normal(0, 4)),
        {"x": BATCH, "y": BATCH},
        is_scripted=True,
        exporters=("trace",),
    )


class FakeQuantised(nn.Module):
    """Weights and activations rounded to eight bits, which becomes QuantizeLinear and back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127)
        weight = torch.fake_quantize_per_tensor_affine(self.conv.weight, 0.01, 0, -128, 127)
        x = functional.relu(functional.conv2d(x, weight, self.conv.bias, padding=1))
        x = torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127)
        return self.head(x.mean((2, 3)))


@case
def fake_quantised() -> Case:
    return Case(FakeQuantised, named(x=normal(0, 3, 8, 8)), {"x": BATCH, "y": BATCH}, limit=2e-2)


class RowStatistics(nn.Module):
    """Positions, a running sum and batch statistics over the rows: never to be cut."""

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[0]).float()[:, None]
        return (x - x.mean(0)) / (x.std(0, correction=0) + 1) + x.cumsum(0) + places / x.shape[0]


@case
def row_statistics() -> Case:
    return Case(RowStatistics, named(x=normal(0, 4)), {"x": BATCH, "y": BATCH})


class OverTime(nn.Module):
    """Features (time, 40) to (time, 16): a convolution over the open first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(40, 16, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.t().unsqueeze(0)).squeeze(0).t()


@case
def convolution_over_time() -> Case:
    return Case(OverTime, named(x=normal(0, 40)), {"x": {0: "time"}, "y": {0: "time"}})


class FeatureTable(nn.Module):
    """Embeddings of categories beside numbers, with their pairwise products, as in DLRM."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 8) for _ in range(3))
        self.dense = nn.Linear(5, 8)
        self.head = nn.Linear(6, 1)
        self.register_buffer("pairs", torch.triu_indices(4, 4, 1))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        columns = [table(categories[:, i]) for i, table in enumerate(self.tables)]
        stacked = torch.stack([self.dense(numbers), *columns], 1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        return self.head(products[:, self.pairs[0], self.pairs[1]]).sigmoid()


@case
def feature_table() -> Case:
    return Case(
        FeatureTable,
        named(numbers=normal(0, 5), categories=integers(20, 0, 3)),
        {"numbers": BATCH, "categories": BATCH, "y": BATCH},
    )


class AutoEncoder(nn.Module):
    """Pooling whose indices the decoder uses to undo it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        pooled, _ = functional.max_pool2d(self.conv(x), 2, return_indices=True)
        return functional.interpolate(pooled, scale_factor=2.0, mode="bicubic")


@case
def autoencoder() -> Case:
    return Case(AutoEncoder, named(x=normal(0, 3, 8, 8)), {"x": BATCH, "y": BATCH})
