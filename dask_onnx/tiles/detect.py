"""Detectors of a fixed input size on pictures of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, get_args

import numpy as np
from dask.base import compute, is_dask_collection

from dask_onnx.api.model import Model
from dask_onnx.collections.inline import inline_graph, supply_collections
from dask_onnx.collections.kinds import as_array
from dask_onnx.collections.partitions import row_request
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.run_options import BatchSize, RunOptions
from dask_onnx.core.errors import InputError
from dask_onnx.core.peers import is_inside_task
from dask_onnx.core.specs import Dim
from dask_onnx.tiles.boxes import Metric
from dask_onnx.tiles.detector import Merge, Preprocess, SliceDetector
from dask_onnx.tiles.formats import FORMATS, Decode, Format, find_reader
from dask_onnx.tiles.sliced_graph import sliced_graph
from dask_onnx.tiles.slices import InputLayout, Size, as_picture, fit_picture, input_layout

_SLICES_OF_A_TASK = 8
"""While the caller names no batch size, and the model takes any."""
_METRICS: Mapping[str, Metric] = {"seams": "iou", "nms": "ios", "nmm": "ios", "weighted": "iou"}
"""What overlap is for each way to merge, unless the caller says."""


def detect_sliced(
    model: Model,
    image: Any,
    *,
    slice_size: int | Size | None = None,
    overlap: float = 0.2,
    format: Format = "auto",  # noqa: A002  # as libraries of detectors call it
    decode: Decode | None = None,
    normalized: bool = False,
    score_threshold: float = 0.25,
    iou_threshold: float = 0.5,
    merge: Merge = "seams",
    metric: Metric | None = None,
    class_agnostic: bool = False,
    full_picture: bool = False,
    batch_size: BatchSize = "auto",
    preprocess: Preprocess | None = None,
    feeds: Mapping[str, Any] | None = None,
) -> Any:
    """Run a detector on slices of a picture, and merge what it finds over the seams.

    The picture is cut into slices of the model's input size that overlap; the last ones of a row
    and a column are moved back inside it. Slices that lie side by side are a task; a task reads
    its part of the picture only, so that the picture never need be in one place. Boxes are small:
    one last task merges those of all slices. A picture that is smaller than a slice is filled up
    with zeros (before `preprocess`) at the lower and right edge; boxes are cut off at its edges.

    Parameters
    ----------
    model : Model
        One input is pictures: (batch, C, H, W) or (batch, H, W, C), or these without the batch.
    image : ndarray, dask.array or xarray.DataArray
        (H, W, C), (C, H, W), (H, W), or these with a first axis of size 1; a DataArray with the
        dimensions y and x and at most one other. Without `preprocess` dtype and number of
        channels must be the model's; axes are moved as it takes them. Chunks may be of any shape.
    slice_size : int or (height, width), optional
        Pixels; by default the model's height and width, where it declares them. Another size than
        that needs a `preprocess` that resizes, without keeping the aspect.
    overlap : float, default 0.2
        Share of a slice that the next one repeats, 0 to less than 1. Objects smaller than this
        share are seen whole by some slice.
    format : {"auto", "boxes", "yolo5", "yolo8", "xyxysc"}
        What the outputs are. "boxes": boxes (n, 4), scores and labels, or boxes (n, 5) with their
        scores and labels, by names or order. "yolo5" (n, 5 + classes): cx, cy, w, h, objectness,
        classes. "yolo8" (4 + classes, n): cx, cy, w, h, classes. "xyxysc" (n, 6): corners, score,
        class. All with a batch axis or without. "auto" tells by names and shapes, or refuses.
    decode : callable, optional
        For all others: takes a dict of output name to the array of one slice, without the batch
        axis; gives boxes (n, 4) as x1, y1, x2, y2 in pixels of the model's input, scores (n,) from
        0 to 1, and labels (n,). It leaves no duplicates inside the slice.
    normalized : bool, default False
        Boxes go from 0 to 1 over the model's input, rather than in pixels of it.
    score_threshold : float, default 0.25
        Boxes of a lower score are dropped.
    iou_threshold : float, default 0.5
        Overlap at and above which boxes of a class are the same object. For "yolo5" and "yolo8",
        whose duplicates inside a slice are suppressed first, it is that intersection over union
        too.
    merge : {"seams", "nms", "nmm", "weighted"}
        How boxes of the same object become one.

        "seams", the default, compares boxes of different slices only, and of those that a slice
        cuts off only the part where both have looked. An object that one slice saw whole keeps
        that box; one that none did gets the box around its parts, over any number of slices. It
        is the only one that is right for objects that are cut off: their parts overlap the whole
        box, and each other, too little for an intersection over union, and by "ios" objects merge
        that one slice has told apart. With no overlap it merges nothing.

        "nms": the best box suppresses the others (greedy non-maximum suppression). "nmm": it grows
        around them (greedy non-maximum merging; with "ios" the usual choice in sliced inference).
        "weighted": the mean by score (weighted boxes fusion, Solovyev, Wang, Gabruseva 2021), for
        objects that are small beside the overlap, as parts pull the mean inwards.
    metric : {"iou", "ios"}, optional
        Intersection over union, or over the smaller box. By default "ios" for "nms" and "nmm", so
        that the part of an object is recognised in the whole one, and "iou" for "weighted".
        "seams" takes none.
    class_agnostic : bool, default False
        Boxes of different classes may be the same object; the best one's class is the result.
    full_picture : bool, default False
        Run the model on the whole picture too, shrunk by a whole number until a slice holds it:
        for objects that are larger than slices. With "seams" boxes of it that a slice holds are
        dropped, as the slices show these objects better.
    batch_size : int, "auto" or None
        Slices of a task and of a run of the session. "auto": up to 8 of a row in a task, and rows
        for a run as in `Model.predict`; None: these 8 in one run. A model that takes a fixed number
        gets that; one whose outputs have no batch axis, or whose rows depend on each other, one.
    preprocess : callable, optional
        Takes a slice in the picture's own dtype and order of axes; gives the model's dtype and
        order of axes, without the batch axis.
    feeds : mapping of input name to array, optional
        Values of the model's other inputs for one slice, without the batch axis, such as
        ``{"orig_target_sizes": np.array([640, 640])}``.

    Returns
    -------
    Boxes
        In pixels of the picture, best first; equal scores by position, whatever the chunks. For a
        dask.array, and a DataArray that holds one, a Delayed of that: nothing has run. For numpy
        it is computed now, on the scheduler that Dask would use.

    Raises
    ------
    InputError
        Before any work: options, picture and model do not fit. From a worker: what `preprocess`,
        `decode` or the model gives does not, or scores are above 1, as where a format is wrong.
    StageError, StoreError
        From a worker, when the result is computed.
    """
    _check_share("overlap", overlap, "from 0 to less than 1, such as 0.2", excluded=1)
    _check_share("score_threshold", score_threshold, "from 0 to 1, such as 0.25")
    _check_share("iou_threshold", iou_threshold, "above 0, up to 1, such as 0.5", excluded=0)
    _check_choices(format, merge, metric)
    _check_kinds(
        {"decode": decode, "preprocess": preprocess},
        {"normalized": normalized, "class_agnostic": class_agnostic, "full_picture": full_picture},
    )
    layout = _picture_input(model, feeds or {})
    size = _slice_size(layout, slice_size, is_free=preprocess is not None)
    picture = as_picture(image, layout)
    if preprocess is None:
        picture = fit_picture(picture, layout)
    input_size = (layout.height or size[0], layout.width or size[1])
    reader = find_reader(model.outputs, format, decode, input_size)
    request = row_request(model, RunOptions(list(reader.outputs), batch_size))
    at_most = _slices_of_a_task(model, request, layout, batch_size)
    axes = request.batch.input_axes
    given = _feeds(model, request, feeds or {}, layout, input_size)
    detector = SliceDetector(
        graph=inline_graph(request, [spec.name for spec in request.stages.inputs], reader.outputs),
        layout=layout,
        reader=reader,
        output_axes=_output_axes(model, request, layout),
        feeds={name: (value, axes[name]) for name, value in given.items()},
        preprocess=preprocess,
        axes=(picture.y, picture.x),
        slice_size=size,
        picture_size=picture.size,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        class_agnostic=class_agnostic,
        is_normalized=normalized,
    )
    lazy = sliced_graph(
        picture,
        detector,
        supply_collections(request),
        overlap=overlap,
        at_most=at_most,
        full_picture=full_picture,
        merge=(merge, metric or _METRICS[merge]),
        retries=request.retries,
    )
    if is_dask_collection(image):
        return lazy
    (found,) = compute(lazy, scheduler="sync" if is_inside_task() else None)
    return found


def _check_share(name: str, value: Any, what: str, excluded: float | None = None) -> None:
    """Whether an option is a number from 0 to 1, one of these ends left out."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1 or value == excluded:
        raise InputError(f"{name} is {value!r}", f"give a number {what}")


def _check_choices(wanted: Any, merge: Any, metric: Any) -> None:
    for name, value, choices in (
        ("format", wanted, FORMATS),
        ("merge", merge, tuple(_METRICS)),
        ("metric", metric, (None, *get_args(Metric))),
    ):
        if value not in choices:
            raise InputError(
                f"{name} is {value!r}", f"choose one of {', '.join(map(repr, choices))}"
            )
    if merge == "seams" and metric is not None:
        raise InputError(
            f"metric={metric!r} is given, and merge='seams' has a rule of its own",
            "leave metric out, or choose merge='nms', 'nmm' or 'weighted'",
        )


def _check_kinds(functions: Mapping[str, Any], switches: Mapping[str, Any]) -> None:
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise InputError(f"{name} is a {type(value).__name__}", "give a function")
    for name, value in switches.items():
        if not isinstance(value, bool | np.bool_):
            raise InputError(f"{name} is {value!r}", "give True or False")


def _picture_input(model: Any, feeds: Mapping[str, Any]) -> InputLayout:
    """The input that takes pictures: the one that is not fed otherwise."""
    if not isinstance(model, Model):
        raise InputError(f"model is a {type(model).__name__}", "pass what dask_onnx.load returns")
    if not isinstance(feeds, Mapping):
        raise InputError(f"feeds is a {type(feeds).__name__}", "pass a dict by input name")
    specs = {spec.name: spec for spec in model.inputs}
    if unknown := [name for name in feeds if name not in specs]:
        raise InputError(
            f"feeds names {', '.join(map(repr, unknown))}, which is no input of the model",
            f"its inputs are {', '.join(map(str, model.inputs))}",
        )
    left = [spec for name, spec in specs.items() if name not in feeds]
    if len(left) != 1:
        raise InputError(
            f"{len(left)} inputs are to take the picture: {', '.join(map(str, left)) or 'none'}",
            "pass all inputs but that of the picture as feeds={name: value for one slice}",
        )
    return input_layout(left[0])


def _slice_size(layout: InputLayout, wanted: Any, *, is_free: bool) -> Size:
    """Height and width of the slices in pixels; free where `preprocess` may resize them."""
    declared = (layout.height, layout.width)
    takes = " x ".join(str(side or "?") for side in declared)
    if wanted is None:
        if declared[0] is None or declared[1] is None:
            raise InputError(
                f"input {layout.name!r} takes {takes} pixels, which leaves the slices' size open",
                "pass slice_size=, such as slice_size=(640, 640)",
            )
        return declared[0], declared[1]
    sides = tuple(wanted) if isinstance(wanted, Sequence) else (wanted, wanted)
    whole = [side for side in sides if isinstance(side, Integral) and not isinstance(side, bool)]
    if len(sides) != 2 or len(whole) != 2 or min(whole) < 1:
        raise InputError(f"slice_size is {wanted!r}", "give pixels: a number, or (height, width)")
    fits = all(own in (None, side) for own, side in zip(declared, whole, strict=True))
    if not is_free and not fits:
        raise InputError(
            f"slice_size is {wanted!r}, and input {layout.name!r} takes {takes} pixels",
            "leave slice_size out, or pass a preprocess= that resizes slices",
        )
    return int(whole[0]), int(whole[1])


def _feeds(
    model: Model,
    request: Request,
    feeds: Mapping[str, Any],
    layout: InputLayout,
    input_size: Size,
) -> dict[str, Any]:
    """The other inputs that the outputs need, for one slice, compared with the model."""
    needed = [spec for spec in request.stages.inputs if spec.name in feeds]
    given = {spec.name: as_array(feeds[spec.name], spec) for spec in needed}
    axes = request.batch.input_axes
    rows = {
        name: value if (axis := axes[name]) is None else np.expand_dims(value, axis)
        for name, value in given.items()
    }
    channels = layout.channels or 1
    shape = (channels, *input_size) if layout.is_channels_first else (*input_size, channels)
    pixels = np.broadcast_to(np.zeros((), layout.dtype), (1, *shape) if layout.is_batch else shape)
    model.check({layout.name: pixels, **rows}, outputs=list(request.wanted.names))
    return given


def _rows_declared(model: Model, layout: InputLayout) -> Dim:
    """The declared size of the batch axis; None where there is none."""
    spec = next(spec for spec in model.inputs if spec.name == layout.name)
    return spec.shape[0] if layout.is_batch and spec.shape else None


def _output_axes(model: Model, request: Request, layout: InputLayout) -> dict[str, int | None]:
    """Outputs to the axis of the slices; where that is not proven, as it is declared.

    What is not proven matters only to slices that run alone.
    """
    rows = _rows_declared(model, layout)
    axes = {name: request.batch.output_axes[name] for name in request.wanted.names}
    for spec in model.outputs:
        is_declared = rows is not None and spec.shape and spec.shape[0] == rows
        if spec.name in axes and axes[spec.name] is None and is_declared:
            axes[spec.name] = 0
    return axes


def _slices_of_a_task(
    model: Model, request: Request, layout: InputLayout, batch_size: BatchSize
) -> int:
    """Slices of a task: as many as one run takes, or some for it to choose from.

    Raises
    ------
    InputError
        Several are asked for, or the model takes no less, and it is not proven which part of the
        outputs is of which slice.
    """
    batch = request.batch
    has_rows = layout.is_batch and batch.input_axes[layout.name] == 0
    has_rows = has_rows and all(
        batch.output_axes[name] is not None for name in request.wanted.names
    )
    declared = _rows_declared(model, layout)
    if has_rows and batch.fixed_rows is not None:
        return batch.fixed_rows
    several = batch_size if isinstance(batch_size, int) else declared
    if not has_rows and isinstance(several, int) and several > 1:
        raise InputError(
            f"{several} slices of a run cannot be told apart in the outputs "
            f"{', '.join(request.wanted.names)}",
            "leave batch_size out: the model then takes one slice at a time"
            if declared != several
            else "export the model with an open batch axis, or for one picture",
        )
    if isinstance(batch_size, int):
        return batch_size
    return _SLICES_OF_A_TASK if has_rows and not (batch.dependent or batch.opaque) else 1
