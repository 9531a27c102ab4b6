"""From settings to the function of a task: pictures that may run together, and their outputs."""

from __future__ import annotations

from collections.abc import Sequence

from dask.delayed import Delayed

from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.collections.images.image_runner import ImageRunner
from dask_onnx.collections.images.image_settings import ImageSettings
from dask_onnx.collections.inline import inline_graph, supply_collections
from dask_onnx.collections.partitions import partition_request
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.run_options import BatchSize, RowOptions, RunOptions
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.facts.model_facts import ModelFacts


def _pictures_together(
    request: Request, settings: ImageSettings, spec: TensorSpec, batch_size: BatchSize
) -> tuple[int | None, dict[str, int | None]]:
    """Return the number of pictures that may run together, and the batch axis of each output.

    Raises
    ------
    InputError
        The caller or the model wants several, and the graph does not prove which part of the
        outputs belongs to which picture.
    """
    layout, batch = settings.preparation.layout, request.batch
    names = settings.form.outputs
    axes = {name: batch.output_axes[name] for name in names}
    declared = spec.shape[0] if layout.is_batch and spec.shape else None
    has_rows = layout.is_batch and batch.input_axes[layout.name] == 0
    has_rows = has_rows and all(axis is not None for axis in axes.values())
    if has_rows:
        is_coupled = batch_size == "auto" and bool(batch.dependent or batch.opaque)
        return 1 if is_coupled else None, axes
    refuse_several(batch_size, declared, names, layout.name, "picture")
    for each in request.stages.outputs:
        first = each.shape[0] if each.shape else None
        is_row = layout.is_batch and first is not None and first in (1, declared)
        if settings.form.task == "boxes":
            # A first axis of 1 may be that of the boxes; those with a batch axis have three.
            is_row = is_row and len(each.shape or ()) > 2
        if each.name in axes and axes[each.name] is None and is_row:
            axes[each.name] = 0
    return 1, axes


def refuse_several(
    batch_size: BatchSize, declared: Dim, outputs: Sequence[str], feed: str, noun: str
) -> None:
    """Refuse runs of several images whose outputs cannot be split into those of each.

    Parameters
    ----------
    batch_size : int, "auto" or None
        Images of a run, as the caller wants.
    declared : int, str or None
        Images of a run, as the model declares.
    outputs : sequence of str
        Outputs that would be split.
    feed : str
        Name of the input that takes images.
    noun : str
        Word for an image, such as "picture" or "slice".

    Raises
    ------
    InputError
        The caller or the model wants several.
    """
    several = batch_size if isinstance(batch_size, int) else declared
    if not isinstance(several, int) or several <= 1:
        return
    is_callers = declared != several
    raise InputError(
        f"the outputs {', '.join(outputs)} cannot be split into those of {several} {noun}s",
        f"leave batch_size out, so that the model takes one {noun} at a time"
        if is_callers
        else "export the model with an open batch axis, or for one image",
        option="batch_size" if is_callers else "model",
        input=feed,
        numbers={f"{noun}s": several},
        suggestions=[Suggestion("batch_size", 1)] if is_callers else [],
    )


def make_runner(
    facts: ModelFacts, settings: ImageSettings, batch_size: BatchSize, rows: RowOptions
) -> tuple[ImageRunner, list[Delayed]]:
    """Return the function that runs a model on pictures, and the tasks that bring it to workers.

    Parameters
    ----------
    facts : ModelFacts
    settings : ImageSettings
    batch_size : int, "auto" or None
        Pictures of a run.
    rows : RowOptions
        Treatment of bad pictures.

    Raises
    ------
    InputError
        The model cannot run several pictures, as the caller or itself wants.
    """
    names = list(settings.form.outputs)
    request = partition_request(facts, RunOptions(names, batch_size))
    graph = inline_graph(request, [spec.name for spec in request.stages.inputs], names)
    specs = {spec.name: spec for spec in request.stages.inputs}
    axes, layout = request.batch.input_axes, settings.preparation.layout
    most, output_axes = _pictures_together(request, settings, specs[layout.name], batch_size)
    runner = ImageRunner(
        graph,
        settings,
        output_axes,
        {name: (specs[name], axes[name]) for name in settings.feeds if name in specs},
        most,
        _bytes_per_pixel(facts, settings, request),
        rows,
    )
    return runner, supply_collections(request)


def _bytes_per_pixel(facts: ModelFacts, settings: ImageSettings, request: Request) -> float:
    """Return the bytes of activations of a run, for each pixel of the picture's tensor."""
    layout = settings.preparation.layout
    shape = assumed_shapes(facts.onnx)[0][layout.name]
    rows = shape[0] if layout.is_batch else 1
    height, width = (shape[axis] for axis in layout.row_axes)
    working = max((stage.cost.working_bytes for stage in request.stages.stages), default=0)
    return float(working) / max(rows * height * width, 1)


def result_ranks(facts: ModelFacts, settings: ImageSettings) -> dict[str, int | None]:
    """Return the number of axes of each output for one picture; None where it is unknown."""
    rows = int(settings.preparation.layout.is_batch)
    found = {}
    for name in settings.form.outputs:
        spec = facts.declared.get(name)
        rank = None if spec is None else spec.rank
        found[name] = None if rank is None else rank - rows
    return found
