"""Presets: preparations that model authors use, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dask_onnx.collections.images.decoding import Color
from dask_onnx.collections.images.input_layout import Size
from dask_onnx.collections.images.resampling import Interpolation
from dask_onnx.collections.images.resize import Resize
from dask_onnx.core.errors import InputError, Suggestion

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
UNIT = 1 / 255
"""Factor that takes pixel values to 0 to 1."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A preparation as far as its source fixes it; None leaves a part to the model."""

    name: str
    """Name, or the file or metadata that it comes from."""
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    color: Color | None = None
    interpolation: Interpolation | None = None
    resize: Resize | None = None
    """Rule with the author's size, where pictures of other sizes are no option for the model."""
    crop: Size | None = None
    shape: str = ""
    """Rule whose size is that of the model: "letterbox", "shorter" (and a crop) or "stretch"."""
    side: int | None = None
    """Side for `shape` where the model leaves it open."""
    crop_share: float = 1.0
    """Side of the crop over the shorter side that the picture is resized to, for "shorter"."""
    stride: int | None = None
    """Pixels of which sizes are multiples, as the model's author says."""
    floors_crop: bool = False
    """True if an odd number of pixels to crop is halved downwards."""
    is_yolo: bool = False
    """True if outputs are those of YOLO."""
    is_text_map: bool = False
    """True if the output is a map of text."""

    def sized(self, model: tuple[int | None, int | None]) -> tuple[Resize | None, Size | None]:
        """Return the rule for the size and the crop, for the size that the model declares.

        Parameters
        ----------
        model : (int or None, int or None)
            Height and width.
        """
        if not self.shape:
            return self.resize, self.crop
        height, width = (each or self.side for each in model)
        if height is None or width is None:
            return self.resize, self.crop
        if self.shape == "letterbox":
            return Resize("letterbox", height, width), None
        if self.shape == "shorter":
            side = int(min(height, width) / self.crop_share + 1e-6)
            if height != width:
                return Resize("stretch", height, width), None
            return Resize("shorter", side), (height, width)
        return Resize("stretch", height, width), None


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "imagenet",
            UNIT,
            IMAGENET_MEAN,
            IMAGENET_STD,
            "RGB",
            "bilinear",
            shape="shorter",
            side=224,
            crop_share=0.875,
        ),
        Preset("clip", UNIT, CLIP_MEAN, CLIP_STD, "RGB", "bicubic", shape="shorter", side=224),
        Preset(
            "yolo",
            UNIT,
            color="RGB",
            interpolation="opencv_linear",
            shape="letterbox",
            side=640,
            is_yolo=True,
        ),
        Preset(
            "paddleocr-det",
            UNIT,
            IMAGENET_MEAN,
            IMAGENET_STD,
            "BGR",
            "opencv_linear",
            resize=Resize("multiple", multiple=32, longest=960),
            stride=32,
            is_text_map=True,
        ),
        Preset(
            "paddleocr-rec",
            UNIT,
            (0.5, 0.5, 0.5),
            (0.5, 0.5, 0.5),
            "BGR",
            "opencv_linear",
            resize=Resize("height", 48, shortest=320, fill=None),
        ),
        Preset(
            "paddleocr-cls",
            UNIT,
            (0.5, 0.5, 0.5),
            (0.5, 0.5, 0.5),
            "BGR",
            "opencv_linear",
            resize=Resize("height", 48, 192, fill=None),
        ),
        Preset("unit", UNIT),
        Preset("signed", UNIT, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        Preset("raw", 1.0),
    )
}
"""Presets by name. "unit": values from 0 to 1; "signed": from -1 to 1; "raw": from 0 to 255."""
PADDLEOCR = "paddleocr"
"""Name of the preset of PaddleOCR that follows from the rank of the model's output."""
PRESET_NAMES = (*PRESETS, PADDLEOCR)
_PADDLEOCR_BY_RANK = {4: "paddleocr-det", 3: "paddleocr-rec", 2: "paddleocr-cls"}


def named_preset(name: Any, output_rank: int | None) -> Preset:
    """Return a preset.

    Parameters
    ----------
    name : str
        One of `PRESET_NAMES`.
    output_rank : int or None
        Rank of the model's first output, which tells PaddleOCR's models apart.

    Raises
    ------
    InputError
        There is no such preset, or PaddleOCR has no model with such an output.
    """
    if isinstance(name, Preset):
        return name
    if name == PADDLEOCR:
        if output_rank not in _PADDLEOCR_BY_RANK:
            raise InputError(
                f"preset 'paddleocr' has no model whose output has {output_rank} axes",
                "choose paddleocr-det, paddleocr-rec or paddleocr-cls",
                option="preset",
                suggestions=[Suggestion("preset", each) for each in _PADDLEOCR_BY_RANK.values()],
            )
        return PRESETS[_PADDLEOCR_BY_RANK[output_rank]]
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(
            f"preset is {name!r}",
            f"choose one of {', '.join(PRESET_NAMES)}",
            option="preset",
            suggestions=[Suggestion("preset", each) for each in PRESET_NAMES],
        )
    return PRESETS[name]


def for_channels(preset: Preset, channels: int) -> Preset:
    """Return a preset for a model of another number of channels than three.

    Means and deviations that are equal for all channels are kept; others are of colours.

    Raises
    ------
    InputError
        The preset's channels differ from each other.
    """
    found = preset
    if channels not in (1, 3, 4):
        return found
    if channels != 3 and preset.color in ("RGB", "BGR"):
        found = replace(found, color=None)
    for name in ("mean", "std"):
        values = getattr(found, name)
        if values is None or len(values) == channels:
            continue
        if len(set(values)) > 1:
            raise InputError(
                f"preset {preset.name!r} has a {name} for each of {len(values)} channels; the "
                f"model takes {channels}",
                "give scale=, mean= and std= instead",
                option="preset",
                numbers={"channels": channels, "preset_channels": len(values)},
                suggestions=[Suggestion("scale"), Suggestion("mean"), Suggestion("std")],
            )
        found = replace(found, **{name: values[:1] * channels})
    return found
