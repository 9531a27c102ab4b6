"""`detect_sliced`: run object detectors of a fixed input size on images of any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask.base import is_dask_collection

from dask_onnx.api.model import Model
from dask_onnx.cluster.current_scheduler import compute_now
from dask_onnx.collections.images.box_readers import BoxFormat, Decode
from dask_onnx.collections.images.boxes import Metric
from dask_onnx.collections.images.formats import find_reader
from dask_onnx.collections.images.input_layout import Size
from dask_onnx.collections.inline import inline_graph, supply_collections
from dask_onnx.collections.partitions import partition_request
from dask_onnx.collections.run_options import BatchSize, RunOptions
from dask_onnx.tiles.detect_options import (
    DEFAULT_METRICS,
    check_choices,
    check_functions,
    check_share,
    check_switches,
    image_input,
    slice_size_of,
)
from dask_onnx.tiles.detector import Merge, Preprocess, SliceDetector
from dask_onnx.tiles.slice_batches import checked_feeds, output_batch_axes, slices_per_task
from dask_onnx.tiles.sliced_graph import sliced_graph
from dask_onnx.tiles.slices import as_chunked_image, fit_to_input


def detect_sliced(
    model: Model,
    image: Any,
    *,
    slice_size: int | Size | None = None,
    overlap: float = 0.2,
    format: BoxFormat = "auto",  # noqa: A002 - the name that libraries of detectors use
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
    """Run an object detector on overlapping slices of an image, and merge the boxes.

    Slices have the model's input size; the last ones of a row and a column are moved back so that
    they end at the end of the image. A task processes some slices of a row and reads that part of
    the image only, so that the image never has to be in one place. One last task merges the boxes
    of all slices. An image smaller than a slice is padded with zeros (before `preprocess`) at the
    lower and right edge. Boxes are clipped to the image.

    Parameters
    ----------
    model : Model
        A model with one input for images, of shape (batch, C, H, W) or (batch, H, W, C), or these
        without the batch axis.
    image : numpy.ndarray, dask.array or xarray.DataArray
        (H, W, C), (C, H, W), (H, W), or these with a first axis of size 1, in any chunks. A
        DataArray has the dimensions y and x and at most one more. Axes are transposed to the
        model's order. Without `preprocess`, dtype and number of channels must be the model's.
    slice_size : int or (height, width), optional
        Size of a slice in pixels; by default the model's height and width if it declares them.
        Another size needs a `preprocess` that stretches slices to the model's size, without
        keeping the aspect ratio.
    overlap : float, default 0.2
        Share of a slice that the next one repeats, 0 to less than 1. Objects smaller than this
        share are whole in some slice.
    format : {"auto", "boxes", "yolo5", "yolo8", "xyxysc", "tf", "paddle", "detr", "rtdetr"}
        Format of the outputs, with or without a batch axis:

        - "boxes": boxes (n, 4), scores and labels, or boxes (n, 5) with their scores, and labels;
          found by names or order.
        - "yolo5": (n, 5 + classes) with cx, cy, w, h, objectness, and a score for each class.
        - "yolo8": (4 + classes, n) with cx, cy, w, h, and a score for each class.
        - "xyxysc": (n, 6) with x1, y1, x2, y2, score and class.
        - "tf": TensorFlow's detection_boxes with y1, x1, y2, x2 from 0 to 1, detection_scores and
          detection_classes.
        - "paddle": (n, 6) with class, score, x1, y1, x2, y2, and the number of rows.
        - "detr", "rtdetr": logits (queries, classes) and boxes (queries, 4) with cx, cy, w, h from
          0 to 1; scores are a softmax, whose last class is none, or a sigmoid.
        - "auto": recognize one of these by names and shapes, or raise an error.
    decode : callable, optional
        Function that reads other formats. It takes a dict of output name to the array for one
        slice, without the batch axis. It returns boxes (n, 4) as x1, y1, x2, y2 in pixels of the
        model's input, scores (n,) from 0 to 1, and labels (n,), without duplicates.
    normalized : bool, default False
        True if boxes go from 0 to 1 over the model's input, rather than being in pixels.
    score_threshold : float, default 0.25
        Score below which boxes are dropped, 0 to 1.
    iou_threshold : float, default 0.5
        Overlap at and above which boxes of a class are the same object, more than 0 and up to 1.
        For "yolo5" and "yolo8", which leave duplicates, it is also the intersection over union at
        which boxes inside a slice are suppressed.
    merge : {"seams", "nms", "nmm", "weighted"}
        Way to merge boxes of the same object.

        - "seams" compares boxes of different slices only, and if a slice crops an object, only the
          area that both slices show. An object that is whole in some slice gets that box; another
          one gets the box around its parts, over any number of slices. It needs an overlap above 0.
          The other ways are wrong for cropped objects: their parts overlap the whole box, and each
          other, too little for an intersection over union, and "ios" also merges objects that one
          slice has separated.
        - "nms": the best box suppresses the others (greedy non-maximum suppression).
        - "nmm": the best box grows around the others (greedy non-maximum merging), which is common
          in sliced inference together with "ios".
        - "weighted": mean of the boxes, weighted by score (weighted boxes fusion; Solovyev, Wang,
          Gabruseva, 2021). For objects that are small compared to the overlap, since cropped boxes
          pull the mean inwards.
    metric : {"iou", "ios"}, optional
        Measure of overlap: intersection over union, or over the smaller box. By default "ios" for
        "nms" and "nmm", so that a part of an object is merged with the whole one, and "iou" for
        "weighted". "seams" takes none.
    class_agnostic : bool, default False
        True if boxes of different classes may be the same object; it gets the class of the best.
    full_picture : bool, default False
        True to run the model on the whole image too, shrunk by an integer factor until a slice
        holds it, for objects that are larger than slices. With "seams", boxes that a slice holds
        are taken from the slice only.
    batch_size : int, "auto" or None
        Slices of a task and of one run of the model. "auto": up to 8 slices of a row in a task, in
        runs of the size that `Model.predict` would choose. None: these 8 in one run. A model with a
        fixed batch size gets that size. A model whose outputs have no batch axis, or whose rows
        depend on each other, gets one slice at a time.
    preprocess : callable, optional
        Function from a slice, in the dtype and axis order of `image`, to the dtype and axis order
        of the model's input, without the batch axis.
    feeds : mapping of str to array, optional
        Values of the model's other inputs for one slice, without the batch axis, such as
        ``{"orig_target_sizes": np.array([640, 640])}``.

    Returns
    -------
    Boxes or dask.delayed.Delayed
        Boxes in pixels of the image, by falling score; equal scores by position, whatever the
        chunks. For a dask.array, or a DataArray of one, it is a Delayed of Boxes, and nothing has
        run. For a numpy array it is computed at once, on the scheduler that Dask would use.

    Raises
    ------
    InputError
        Before any work: an option or the image does not fit the model. When the result is computed:
        `preprocess`, `decode` or the model returned something that does not fit, or scores are
        above 1, as they are if the format is wrong.
    StageError, StoreError
        When the result is computed: the model failed on a worker, or could not be read there.

    See Also
    --------
    Boxes : The result.
    predict_tiled : Run models with an output for each pixel on a large image.

    Examples
    --------
    >>> import dask.array as da
    >>> import dask_onnx as dx
    >>> model = dx.load("yolov8n.onnx")  # takes float32, (1, 3, 640, 640)
    >>> image = da.from_zarr("scene.zarr")  # uint8, (20000, 30000, 3)
    >>> def to_unit(piece):
    ...     return (piece.transpose(2, 0, 1) / 255).astype("float32")
    >>> found = dx.detect_sliced(model, image, preprocess=to_unit).compute()
    >>> large = found.boxes[found.scores > 0.5]
    """
    check_share("overlap", overlap, "from 0 to less than 1, such as 0.2", excluded=1)
    check_share("score_threshold", score_threshold, "from 0 to 1, such as 0.25")
    check_share("iou_threshold", iou_threshold, "above 0, up to 1, such as 0.5", excluded=0)
    check_choices(format, merge, metric)
    check_functions(decode=decode, preprocess=preprocess)
    check_switches(normalized=normalized, class_agnostic=class_agnostic, full_picture=full_picture)
    layout = image_input(model, feeds or {})
    size = slice_size_of(layout, slice_size, can_resize=preprocess is not None)
    chunked = as_chunked_image(image, layout)
    if preprocess is None:
        chunked = fit_to_input(chunked, layout)
    input_size = (layout.height or size[0], layout.width or size[1])
    reader = find_reader(model.outputs, format, decode, input_size)
    request = partition_request(model._facts, RunOptions(list(reader.outputs), batch_size))
    at_most = slices_per_task(model, request, layout, batch_size)
    axes = request.batch.input_axes
    others = checked_feeds(model, request, feeds or {}, layout, input_size)
    detector = SliceDetector(
        graph=inline_graph(request, [spec.name for spec in request.stages.inputs], reader.outputs),
        layout=layout,
        reader=reader,
        output_axes=output_batch_axes(model, request, layout),
        feeds={name: (value, axes[name]) for name, value in others.items()},
        preprocess=preprocess,
        axes=(chunked.y, chunked.x),
        slice_size=size,
        image_size=chunked.size,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        class_agnostic=class_agnostic,
        is_normalized=normalized or reader.is_normalized,
    )
    lazy = sliced_graph(
        chunked,
        detector,
        supply_collections(request),
        overlap=overlap,
        at_most=at_most,
        full_picture=full_picture,
        merge=(merge, metric or DEFAULT_METRICS[merge]),
        retries=request.options.retries,
    )
    if is_dask_collection(image):
        return lazy
    (found,) = compute_now([lazy])
    return found
