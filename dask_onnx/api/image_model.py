"""Models of pictures with their preparation, on every kind of collection."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from dask.delayed import Delayed

from dask_onnx.api.model import Model
from dask_onnx.cluster.current_scheduler import using_client
from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.images.box_readers import Decode, Format
from dask_onnx.collections.images.form_requests import Task
from dask_onnx.collections.images.geometry import Geometry
from dask_onnx.collections.images.image_options import USUAL_PIXELS, ImageOptions
from dask_onnx.collections.images.image_runner import ImageRunner, name_of
from dask_onnx.collections.images.image_settings import settle
from dask_onnx.collections.images.picture_batches import make_runner
from dask_onnx.collections.images.picture_collections import RunGiven
from dask_onnx.collections.images.picture_predictions import (
    PictureOptions,
    predict_any_pictures,
    predict_checked_pictures,
    predict_kept_pictures,
)
from dask_onnx.collections.prepared_function import PreparedFunction
from dask_onnx.collections.request_steps import synchronous_client
from dask_onnx.collections.run_options import BatchSize, OnError, Outputs, RowOptions
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.io.optional_packages import require_package


class ImageModel:
    """A model of pictures with its preparation: decoding, resizing, scaling, and its inverse.

    Channels, height, width and dtype of the input are taken from the graph, as far as it fixes
    them. The scaling of pixel values is taken from `preset` or `scale`, or else from the model's
    metadata (ultralytics), from files beside it (``preprocessor_config.json``, timm's
    ``config.json``), or from the graph, if it scales by itself or takes integers. Where none of
    these has it, an error names the presets: no number is guessed. ``repr`` shows the settings.

    Pictures are upright, as their EXIF orientation says; colour profiles are ignored, transparency
    is dropped, and of an animation the first frame counts. Pixels of 16 bits are reduced to 8.

    Parameters
    ----------
    model : Model
        One input takes pictures: 3 axes, or 4 with the batch axis, channels first or last.
    preset : str, optional
        - "imagenet": shorter side 256, centre crop of 224 (or the model's size), ImageNet's mean
          and deviation, as torchvision.
        - "clip": shorter side and centre crop of 224, bicubic, CLIP's mean and deviation.
        - "yolo": letterboxed to 640 or the model's size, values from 0 to 1, as ultralytics.
        - "paddleocr": PaddleOCR's detection, recognition or orientation, by the model's output;
          "paddleocr-det", "paddleocr-rec", "paddleocr-cls". Channels are in the order BGR.
        - "unit", "signed", "raw": values from 0 to 1, -1 to 1, and 0 to 255, at the model's size.
    resize : int, (int, int), str or Resize, optional
        Size of the pictures: 640 or (480, 640) as height and width stretch them. A text: "none",
        "640x480" as **width** and height, "shorter=256", "shorter=800,max=1333", "longer=1024",
        "letterbox=640", "multiple=32", "multiple=32,max=960", "height=48". By default that of the
        preset; else stretched to the model's size; else, if the model takes any size, the picture's
        own, rounded to the multiple that the model takes.
    crop : int, (int, int) or str, optional
        Part in the middle that is kept after resizing. A smaller picture is padded with black.
    layout : {"NCHW", "NHWC"}, optional
        Order of the input's axes, where its shape does not tell it.
    color : {"RGB", "BGR", "gray", "RGBA"}, optional
        Order of the channels; by default the preset's, or else "gray", "RGB" or "RGBA" by number.
    scale : float, optional
        Factor of pixel values, such as 1/255.
    mean, std : float or sequence of float, optional
        Subtracted after scaling, and divided by; in the order of the channels.
    interpolation : str, optional
        "bilinear", "bicubic", "lanczos", "nearest", "box" as in Pillow, with antialiasing; or
        "opencv_linear" as ``cv2.resize``, without. By default the preset's, or "bilinear".
    labels : path, sequence of str, or mapping of int to str, optional
        Names of classes; by default those of the model's metadata.
    alphabet : path or sequence of str, optional
        Characters of a model that reads text (CTC), in the order of its classes, without the blank;
        by default those of PaddleOCR's metadata. A file has one in each line.
    task : {"auto", "boxes", "labels", "mask", "text", "raw"}
        Form of results: objects, the best classes, a map of the picture, a text, or outputs as they
        are. "auto" takes one of the first four where the outputs show it.
    format : str, default "auto"
        Format of boxes, as for `detect_sliced`; or of boxes with details:

        - "yolo8-seg", "yolo5-seg", "xyxysc-seg": masks, from coefficients behind the classes and a
          second output of maps.
        - "yolo8-pose", "xyxysc-pose": key points behind the classes.
        - "yolo8-obb", "xyxysc-obb": turned boxes, an angle in radians behind the classes; the boxes
          of the latter are cx, cy, w, h.

        The metadata of ultralytics tell it by themselves. "dbnet" finds areas of text in a map of
        probabilities, as turned boxes: PaddleOCR's detectors, whose preset chooses it. It needs
        OpenCV (the extra ``ocr``); ``task="mask"`` gives the map.
    keypoints : (int, int), optional
        Key points of each object, and numbers of each: 3 with a score, 2 without. By default those
        of the model's metadata.
    decode : callable, optional
        Function that reads boxes of other formats, as for `detect_sliced`.
    normalized : bool, default False
        True if boxes go from 0 to 1 over the model's input.
    top : int, optional
        Classes of each picture, 1 by default.
    score_threshold : float, optional
        Score below which boxes are dropped: by default 0.25, of text 0.6.
    iou_threshold : float, default 0.5
        Intersection over union at which boxes of a class are duplicates, where the model leaves
        them ("yolo5", "yolo8").
    class_agnostic : bool, default False
        True if boxes of different classes may be duplicates.
    outputs : str or sequence of str, optional
        Outputs to read; all by default.
    input : str, optional
        Name of the input that takes pictures, if there are several.
    feeds : mapping of str to array, optional
        Values of other inputs for one picture, without the batch axis. ``orig_target_sizes``,
        ``im_shape``, ``scale_factor`` and ``pixel_mask`` of detectors are fed by default.
    max_pixels : int
        Pixels above which a picture is refused before it is decoded.

    Raises
    ------
    InputError
        The model takes no pictures, an option does not fit it, or nothing tells how pixel values
        are scaled.

    See Also
    --------
    TextModel : The same for texts.
    detect_sliced, predict_tiled : Pictures that are too large for one run.

    Examples
    --------
    >>> import dask_onnx as dx
    >>> yolo = dx.ImageModel(dx.load("yolov8n.onnx"))
    >>> for found in yolo.predict("photos/*.jpg"):
    ...     print(found.file, found.names, found.boxes.boxes)
    """

    def __init__(
        self,
        model: Model,
        *,
        preset: str | None = None,
        resize: Any = None,
        crop: Any = None,
        layout: str | None = None,
        color: str | None = None,
        scale: float | None = None,
        mean: Any = None,
        std: Any = None,
        interpolation: str | None = None,
        labels: Any = None,
        alphabet: Any = None,
        task: Task = "auto",
        format: Format = "auto",  # noqa: A002 - the name that libraries of detectors use
        decode: Decode | None = None,
        keypoints: Any = None,
        normalized: bool = False,
        top: int | None = None,
        score_threshold: float | None = None,
        iou_threshold: float = 0.5,
        class_agnostic: bool = False,
        outputs: Outputs = None,
        input: str | None = None,  # noqa: A002 - the noun of ONNX
        feeds: Mapping[str, Any] | None = None,
        max_pixels: int = USUAL_PIXELS,
    ) -> None:
        require_package("PIL", "ImageModel")
        if not isinstance(model, Model):
            raise InputError(
                f"model is of type {type(model).__name__}",
                "pass what dask_onnx.load returns",
                option="model",
            )
        self.model = model
        self._settings = settle(
            model._facts,
            ImageOptions(
                preset=preset,
                resize=resize,
                crop=crop,
                layout=layout,
                color=color,
                scale=scale,
                mean=mean,
                std=std,
                interpolation=interpolation,
                labels=labels,
                alphabet=alphabet,
                task=task,
                format=format,
                decode=decode,
                keypoints=keypoints,
                normalized=normalized,
                top=top,
                score_threshold=score_threshold,
                iou_threshold=iou_threshold,
                class_agnostic=class_agnostic,
                outputs=outputs,
                input=input,
                feeds={} if feeds is None else feeds,
                max_pixels=max_pixels,
            ),
        )

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of the model that its results need."""
        return tuple(self.model._facts.inputs_of(self._settings.form.outputs))

    @property
    def labels(self) -> Mapping[int, str]:
        """Names of classes by number; empty where they are unknown."""
        return dict(self._settings.results.labels or {})

    @property
    def task(self) -> str:
        """Form of the results: "boxes", "labels", "mask", "text" or "raw"."""
        return self._settings.form.task

    def preprocess(self, image: Any) -> np.ndarray:
        """Return the tensor that the model is given for a picture, with its batch axis.

        Parameters
        ----------
        image : path, URL, bytes, PIL.Image, or array

        Raises
        ------
        InputError
            The picture cannot be decoded, or does not come to a size that the model takes.
        """
        tensor = self._prepared(image)[0]
        return tensor[None] if self._settings.preparation.layout.is_batch else tensor

    def geometry(self, image: Any) -> Geometry:
        """Return the place and scale of a picture in the tensor that `preprocess` returns.

        Raises
        ------
        InputError
            As for `preprocess`.
        """
        return self._prepared(image)[1]

    def _prepared(self, image: Any) -> tuple[np.ndarray, Geometry]:
        try:
            return self._settings.preparation(image)
        except InputError as error:
            name = name_of(image, 0, 1)
            raise InputError(f"{name}: {error.cause}", error.next_step, **error.fields) from None

    def predict(
        self,
        x: Any,
        *,
        column: Any = None,
        append: bool | Sequence[Any] = False,
        batch_size: BatchSize = "auto",
        on_error: OnError = "raise",
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> Any:
        """Return the results for pictures, in the pictures' own coordinates.

        Pictures are opened inside tasks, so that the workers must see their paths. Those that come
        to one size run together.

        Parameters
        ----------
        x : picture, or a collection of pictures
            - A picture: bytes, a PIL.Image, an array of shape (height, width[, channels]), or the
              path or URL of one.
            - A folder, or a pattern such as ``"photos/*.jpg"``: all of its pictures, sorted by
              name.
            - A sequence of pictures, or an array of shape (pictures, height, width, channels).
            - A Series of paths or bytes, or a DataFrame with such a column, of pandas or Dask.
            - A bag of pictures; a dask.array of shape (pictures, height, width, channels); a
              Delayed of a picture or of a sequence of them.
        column : hashable, optional; for a DataFrame
            Label of the column of paths or bytes.
        append : bool or sequence of labels; for a DataFrame
            Columns to keep before those of the results.
        batch_size : int, "auto" or None
            Pictures of a run, among those of one size; see `Model.predict`.
        on_error : {"raise", "null"}
            Treatment of pictures that cannot be read: an error, or None in their place (in a table
            a row of missing values).
        checkpoint : path or URL, optional
            Folder that keeps finished partitions of a Dask table or bag, or chunks of a dask.array,
            as for `Model.predict`. Of pictures in files, the paths are compared.

        Returns
        -------
        ImageResult, list of ImageResult, DataFrame, Bag or Delayed
            For a picture one result; for a sequence, folder, pattern or array a list. For a bag or
            a dask.array a bag, for a Delayed a Delayed. For a table one row for each object
            (``class, score, x0, y0, x1, y1``; with ``points``, ``corners``, or ``mask`` and
            ``mask_size``: run lengths in COCO's order, height and width), class (``rank, class,
            score``) or text (``text, score``), or a column of lists for each output, with the index
            of the picture. Lazy for Dask.

        Raises
        ------
        InputError
            A picture cannot be read, with its name; from a worker when the result is computed.
        """
        options = PictureOptions(column, append, batch_size, RowOptions(on_error))
        facts, settings = self.model._facts, self._settings
        if checkpoint is None:
            return predict_any_pictures(facts, settings, x, options)
        return predict_kept_pictures(facts, settings, x, options, checkpoint)

    def predict_checked(
        self,
        x: Any,
        *,
        column: Any = None,
        append: bool | Sequence[Any] = False,
        batch_size: BatchSize = "auto",
    ) -> tuple[Any, Any]:
        """Return the results of the good pictures, and the bad pictures with their errors.

        Parameters
        ----------
        x, column, append, batch_size
            See `predict`.

        Returns
        -------
        good : list of ImageResult, DataFrame or Bag
            Results of the good pictures.
        bad : list, DataFrame or Bag
            For a table its bad rows with a column ``error``; otherwise dicts of ``row`` and
            ``error``.

        Raises
        ------
        InputError
            A column is missing, or `x` is a Delayed.
        """
        options = PictureOptions(column, append, batch_size, RowOptions("split"))
        return predict_checked_pictures(self.model._facts, self._settings, x, options)

    def prepare(self, client: Any = None, *, retries: int | None = None) -> PreparedFunction:
        """Return a request for single pictures that is prepared once, as for frames of a video.

        Parameters
        ----------
        client : distributed.Client, optional
            Client of the cluster, synchronous; by default the one that Dask would use.
        retries : int, optional
            Times that Dask repeats a task that raised; ``onnx.retries`` (3) by default.

        Returns
        -------
        PreparedFunction
            ``request(picture)`` returns an `ImageResult`, ``request.submit(picture)`` a
            `concurrent.futures.Future` of it. Pictures are decoded and prepared in the task.

        Raises
        ------
        InputError
            There is no client, or it is asynchronous.

        Examples
        --------
        >>> for index, found in dx.stream(yolo, "in.mp4", client):
        ...     print(index, found.boxes)
        """
        client = synchronous_client(client)
        with using_client(client):
            runner, supplies = self._runner(None, RowOptions())
        return PreparedFunction(
            RunGiven(runner),
            client,
            name=runner.label,
            token=self.model.token,
            inputs=self.inputs,
            supplies=client.compute(supplies),
            retries=effective_retries(retries),
        )

    def _runner(self, batch_size: BatchSize, rows: RowOptions) -> tuple[ImageRunner, list[Delayed]]:
        return make_runner(self.model._facts, self._settings, batch_size, rows)

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        return f"<dask_onnx.ImageModel {self.model.name!r}: {inputs}; {self.describe()}>"

    def describe(self) -> str:
        """Return the preparation of pictures and the form of results, in one line."""
        return self._settings.describe()
