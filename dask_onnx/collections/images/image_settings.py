"""Options of `ImageModel`, completed by what the model says, or refused where nothing tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.analysis.size_multiples import accepted_multiple
from dask_onnx.collections.images.ctc_text import read_alphabet
from dask_onnx.collections.images.form_requests import FormRequest
from dask_onnx.collections.images.graph_hints import scales_itself
from dask_onnx.collections.images.image_forms import Form, find_form
from dask_onnx.collections.images.image_inputs import image_spec, layout_of, other_feeds
from dask_onnx.collections.images.image_options import (
    USUAL_THRESHOLD,
    ImageOptions,
    color_of,
    keypoints_of,
    pixel_limit,
    scale_of,
    share_of,
    top_of,
    values_per_channel,
)
from dask_onnx.collections.images.image_results import ResultOptions
from dask_onnx.collections.images.input_layout import InputLayout, Size
from dask_onnx.collections.images.model_metadata import ModelNotes, notes_of, read_labels
from dask_onnx.collections.images.preparation import Preparation
from dask_onnx.collections.images.presets import PRESETS, Preset, for_channels, named_preset
from dask_onnx.collections.images.resampling import check_interpolation
from dask_onnx.collections.images.resize import Resize, parse_resize, parse_size
from dask_onnx.collections.images.text_areas import TEXT_MAP, USUAL_SCORE
from dask_onnx.collections.request_checks import resolve_outputs
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.facts.model_facts import ModelFacts

_MULTIPLE = "accepted multiple of pixels"
"""Key among a model's facts."""


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Complete settings: how pictures go in, and how results are read."""

    preparation: Preparation
    """Preparation of pictures."""
    form: Form
    """Form of the results."""
    results: ResultOptions
    """Options of results."""
    feeds: Mapping[str, Any]
    """Other inputs: a value for one picture, or what `EXTRA_FEEDS` names, as text."""
    source: str
    """Source of the scaling of pixel values, such as "preset imagenet"."""

    def describe(self) -> str:
        """Return the settings in one line of words."""
        return (
            f"{self.preparation.describe()} (from {self.source}); results: {self.form.describe()}"
        )


def settle(facts: ModelFacts, given: ImageOptions) -> ImageSettings:
    """Return complete settings for a model.

    Parameters
    ----------
    facts : ModelFacts
    given : ImageOptions

    Raises
    ------
    InputError
        The model takes no pictures, an option is malformed or does not fit the model, or nothing
        tells how pixel values are scaled.
    """
    outputs = _wanted_outputs(facts, given.outputs)
    names = tuple(spec.name for spec in outputs)
    inputs = facts.inputs_of(names)
    spec = image_spec(inputs, given)
    layout = layout_of(facts, spec, given)
    source = facts.onnx.source
    metadata = {entry.key: entry.value for entry in facts.graph.proto.metadata_props}
    notes = notes_of(metadata, None if source is None else source.path)
    labels = read_labels(given.labels) or notes.labels
    preset = _preset(facts, layout, given, notes, outputs[0].rank)
    score = USUAL_THRESHOLD if given.score_threshold is None else given.score_threshold
    results = ResultOptions(
        share_of(score, "score_threshold"),
        share_of(given.iou_threshold, "iou_threshold"),
        given.class_agnostic,
        top_of(given.top),
        labels,
    )
    form = find_form(
        FormRequest(
            facts.graph,
            tuple(inputs),
            outputs,
            layout,
            dataclasses.replace(notes, labels=labels),
            preset.is_yolo,
            preset.is_text_map,
            None if labels is None else max(labels) + 1,
            given.task,
            given.format,
            given.decode,
            given.normalized,
            given.top is not None,
            keypoints_of(given.keypoints) or notes.keypoints,
            read_alphabet(given.alphabet) or notes.alphabet,
        )
    )
    if form.reader is not None and form.reader.format == TEXT_MAP:
        score = USUAL_SCORE if given.score_threshold is None else results.score_threshold
        results = dataclasses.replace(
            results, score_threshold=score, labels={0: "text"} if labels is None else labels
        )
    preparation = _preparation(facts, layout, given, preset)
    feeds = other_feeds(inputs, spec, given)
    return ImageSettings(preparation, form, results, feeds, preset.name)


def _wanted_outputs(facts: ModelFacts, given: Any) -> tuple[TensorSpec, ...]:
    names = resolve_outputs(given, facts.graph.outputs, facts.known_values).ordered
    declared = {spec.name: spec for spec in facts.onnx.outputs}
    return tuple(declared.get(name) or facts.typed_spec(name) for name in names)


def _preset(
    facts: ModelFacts,
    layout: InputLayout,
    given: ImageOptions,
    notes: ModelNotes,
    output_rank: int | None,
) -> Preset:
    """Return the preset to go by, whose name says where it comes from.

    Raises
    ------
    InputError
        Nothing tells how pixel values are scaled.
    """
    channels = layout.channels or 3
    if given.preset is not None:
        found = named_preset(given.preset, output_rank)
        fitted = for_channels(found, channels)
        return dataclasses.replace(fitted, name=f"preset {found.name}")
    if given.scale is None and (given.mean is not None or given.std is not None):
        known = notes.preset
        if known is None or known.scale is None:
            raise InputError(
                "mean and std are given without a scale, and means may be of values from 0 to 1 "
                "or from 0 to 255",
                "give scale too: 1/255 for the former, 1 for the latter",
                option="scale",
                suggestions=[Suggestion("scale", "1/255"), Suggestion("scale", 1)],
            )
    if notes.preset is not None:
        return for_channels(notes.preset, channels)
    if given.scale is not None:
        return Preset("the options")
    if layout.dtype.kind in "iu" and layout.dtype != np.int8:
        return Preset(f"the input's dtype, {layout.dtype}", 1.0)
    own = scales_itself(facts.graph, layout.name)
    if own is not None:
        return Preset(f"the graph, where {own.text}", 1.0, color=own.color)
    raise InputError(
        f"nothing tells how the model scales pixel values: input {layout.name!r} takes "
        f"{layout.dtype}, and neither the model's metadata nor a file beside it say more",
        f"give a preset, as the model's author prepares pictures: {', '.join(PRESETS)} or "
        "paddleocr; or scale= (such as 1/255), mean= and std=",
        option="preset",
        input=layout.name,
        suggestions=[
            *(Suggestion("preset", name) for name in ("imagenet", "yolo", "paddleocr")),
            Suggestion("scale", "1/255"),
        ],
    )


def _preparation(
    facts: ModelFacts, layout: InputLayout, given: ImageOptions, preset: Preset
) -> Preparation:
    channels = layout.channels or 3
    if layout.dtype == np.uint8 and given.scale is None and given.mean is None:
        # The graph of a model of uint8 scales by itself, whatever its metadata say.
        preset = dataclasses.replace(preset, scale=1.0, mean=None, std=None)
    size = (layout.height, layout.width)
    resize, crop = preset.sized(size)
    multiple = None
    if None in size:
        multiple = _multiple(facts, layout)
        if preset.stride is not None and multiple is not None:
            multiple = max(multiple, preset.stride)
    if given.crop is not None:
        crop = parse_size(given.crop, "crop")
    elif given.resize is not None:
        crop = None
    if given.resize is not None:
        resize = parse_resize(given.resize)
    elif resize is None or not _fits(resize, crop, size):
        resize = _default_resize(layout, resize, crop, multiple)
    found = Preparation(
        layout=layout,
        resize=resize,
        crop=crop,
        color=color_of(given.color or preset.color, channels),
        scale=scale_of(given.scale, preset.scale),
        mean=values_per_channel(given.mean, preset.mean, 0.0, channels, "mean"),
        std=values_per_channel(given.std, preset.std, 1.0, channels, "std"),
        interpolation=check_interpolation(
            given.interpolation or preset.interpolation or "bilinear"
        ),
        max_pixels=pixel_limit(given.max_pixels),
        floors_crop=preset.floors_crop,
        multiple=multiple,
    )
    if not all(found.std):
        raise InputError("std has a 0", "give deviations above 0", option="std")
    _check_canvas(found)
    return found


def _multiple(facts: ModelFacts, layout: InputLayout) -> int | None:
    """Return the pixels of which the model takes multiples; None where that is unknown."""

    def make() -> int | None:
        spec = next(spec for spec in facts.onnx.inputs if spec.name == layout.name)
        shape = list(spec.shape or ())
        rank = len(shape)
        shape[rank - 3 if layout.is_channels_first else rank - 1] = layout.channels
        rows = [rank + axis for axis in layout.row_axes]
        axes = [axis for axis in rows if not isinstance(shape[axis], int)]
        return accepted_multiple(facts.graph, layout.name, shape, axes, facts.schemas)

    key = (_MULTIPLE, layout.name, layout.is_channels_first)
    found: int | None = facts.kept.get_or_make(key, make)
    return found


def _fits(resize: Resize, crop: Size | None, model: tuple[int | None, int | None]) -> bool:
    """Return whether a preset's rule may come to the size that the model fixes."""
    if crop is not None:
        return True
    if resize.how in ("stretch", "letterbox") or (resize.how == "height" and resize.width):
        own = (resize.height, resize.width)
        return all(side in (None, mine) for side, mine in zip(model, own, strict=True))
    if resize.how == "height":
        return model[0] in (None, resize.height) and model[1] is None
    return model == (None, None)


def _default_resize(
    layout: InputLayout, preset: Resize | None, crop: Size | None, multiple: int | None
) -> Resize:
    height, width = layout.height, layout.width
    if height is not None and width is not None:
        if preset is not None and preset.how == "height":
            return Resize("height", height, width, fill=preset.fill)
        if preset is not None and preset.how == "letterbox":
            return Resize("letterbox", height, width, fill=preset.fill)
        return Resize("stretch", height, width)
    if height is not None:
        return Resize("height", height, fill=None, shortest=1)
    if crop is None and multiple is not None and multiple > 1:
        return Resize("multiple", multiple=multiple)
    return Resize("none")


def _check_canvas(found: Preparation) -> None:
    """Refuse a rule whose size, which is known without a picture, is not the model's."""
    if found.crop is None and found.resize.how not in ("stretch", "letterbox"):
        return
    found.check_canvas(found.place((64, 64)).canvas)
