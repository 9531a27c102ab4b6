"""Plans of one stage on dask arrays: a `blockwise` layer, which Dask fuses with its neighbours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import dask.config
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Alias, TaskRef

from dask_onnx.collections.block_checks import BlockType
from dask_onnx.collections.kinds import most_rows
from dask_onnx.collections.prediction_request import Request
from dask_onnx.core.errors import InputError
from dask_onnx.core.stage_tasks import Hints, digest
from dask_onnx.lowering.lower import Feeds, Layout, Lowered, lower
from dask_onnx.runtime.kernel import run_stage, take_output
from dask_onnx.runtime.stage_calls import StageCall

LITERAL_BYTES = 1024
"""Bytes up to which an input without rows is written into each task; a larger one is a key."""

_ROWS = "rows"
"""Index of the batch axis, in the sense of `da.blockwise`."""

_ONE = "one"
"""Index of an axis of one block that only keys have, where blocks have the batch axis alone."""

_OWN_NAME_SECONDS = 0.05
"""Predicted seconds of a chunk from which on its task keeps the model's name.

Dask would fuse the model into `blockwise` layers that follow, under their name. The alias that
prevents it costs Dask 1-2 ms a chunk."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockPredictor:
    """Function that `blockwise` calls: a stage on the blocks of one chunk."""

    call: StageCall
    """Stage and options."""
    token: str
    """Digest of the stage, its options and its inputs."""
    type: BlockType | None = None
    """Type of its only output; None if it has several."""

    @property
    def hints(self) -> Hints:
        """Facts for Dask's scheduler."""
        return self.call.hints

    def __call__(self, *blocks: Any) -> Any:
        """Run the stage."""
        result = run_stage(self.call, *map(_unwrap, blocks))
        return result if self.type is None else self.type.checked(result)

    def __dask_tokenize__(self) -> str:
        return self.token


@dataclass(frozen=True, slots=True)
class TakeOutput:
    """Function that selects one output of a task's result."""

    position: int | None
    """Position of the output; None if the task has one output."""
    axis: int | None
    """Batch axis of the output."""
    type: BlockType
    """Type of the output."""

    def __call__(self, block: Any) -> Any:
        """Return the output, its micro-batches joined."""
        return self.type.checked(take_output(_unwrap(block), self.position, self.axis))


def _unwrap(block: Any) -> Any:
    """Return the block inside nested lists: `blockwise` makes a list of each axis to contract."""
    while isinstance(block, list):
        (block,) = block
    return block


def predict_blocks(
    request: Request, arrays: Mapping[str, Any], chunks: tuple[float, ...]
) -> dict[str, da.Array]:
    """Return one lazy array for each requested output of a plan of one stage.

    Dask fuses `blockwise` layers only if a layer's inputs have no index that its output lacks. So
    the axes of one block, all but the batch axis, take the indices of the output's axes of one
    block, whatever their sizes.

    Parameters
    ----------
    request : Request
        Checked request.
    arrays : mapping of str to array
        Inputs; dask arrays are chunked along their batch axis only, all alike.
    chunks : tuple of int or float
        Rows of each chunk; NaN where unknown.

    Raises
    ------
    InputError
        The rank of an output is unknown.
    """
    (stage,) = request.stages.stages
    lowered = _lower(request, arrays)
    ((name, layer),) = lowered.layers.items()
    (task,) = layer.values()
    predictor = BlockPredictor(task.args[0], name)
    if len(stage.outputs) == 1:
        output = stage.outputs[0].name
        predictor = replace(predictor, type=block_type(request, output, stage.label))
        made = _predicted(request, predictor, arrays, output, chunks, name)
        return {output: made}
    out_index = (_ROWS, _ONE)
    pairs = _pairs(request, arrays, out_index, len(chunks))
    results = da.blockwise(
        predictor,
        out_index,
        *pairs,
        name=name,
        dtype=object,
        meta=np.empty((0, 0), dtype=object),
        new_axes={index: 1 for index in out_index if index not in _indices(pairs)},
        align_arrays=False,
        concatenate=None,
    )
    return {
        output: _taken(
            request,
            TakeOutput(
                lowered.outputs[output].position, None, block_type(request, output, stage.label)
            ),
            results,
            output,
            chunks,
            f"{stage.label}_{position}-{digest(name, output)}",
        )
        for position, output in enumerate(request.wanted.names)
    }


def _lower(request: Request, arrays: Mapping[str, Any]) -> Lowered:
    feeds = Feeds(
        {n: (TaskRef(n),) for n in arrays},
        request.batch.input_axes,
        feeds_token(arrays),
        1,
        most_rows(arrays, request.batch.input_axes),
    )
    return lower(request.model, request.stages, feeds, request.options)


def _predicted(
    request: Request,
    predictor: BlockPredictor,
    arrays: Mapping[str, Any],
    output: str,
    chunks: tuple[float, ...],
    name: str,
) -> da.Array:
    """Return the array of a stage's only output.

    If the batch axis is the output's only axis, keys have one axis more than the blocks: it stands
    for the inputs' other axes.
    """
    layout, sizes = output_chunks(request, output, chunks)
    out_index = _out_index(layout)
    can_alias = not dask.config.get("array.query-planning", False)
    is_lone = out_index == (_ROWS,) and can_alias
    if not is_lone and not (can_alias and _keeps_name(request, arrays)):
        pairs = _pairs(request, arrays, out_index, len(chunks))
        return _blockwise(request, predictor, pairs, out_index, sizes, output, name)
    label = name.partition("-")[0]
    block_index, block_sizes = ((_ROWS, _ONE), (*sizes, (1,))) if is_lone else (out_index, sizes)
    pairs = _pairs(request, arrays, block_index, len(chunks))
    inner = f"{label}-{digest(name, 'blocks')}"
    blocks = _blockwise(request, predictor, pairs, block_index, block_sizes, output, inner)
    return _renamed(blocks, name, layout, sizes, request.dtype(output))


def _keeps_name(request: Request, arrays: Mapping[str, Any]) -> bool:
    """Return whether the work of a chunk takes so long that an alias costs little beside it."""
    return chunk_seconds(request, arrays) >= _OWN_NAME_SECONDS


def chunk_seconds(request: Request, arrays: Mapping[str, Any]) -> float:
    """Return the predicted seconds of the largest chunk.

    Parameters
    ----------
    request : Request
        Checked request.
    arrays : mapping of str to array
        Inputs.
    """
    seconds = request.stages.seconds
    # Rows of a chunk, and rows that the seconds are for; if either is unknown, one run is assumed.
    rows, per = most_rows(arrays, request.batch.input_axes), request.options.rows
    if rows is not None and not math.isnan(rows) and per:
        seconds *= rows / per
    return seconds


def _renamed(
    blocks: da.Array, name: str, layout: Layout, sizes: Sequence[Any], dtype: np.dtype[Any]
) -> da.Array:
    """Return an array of the same blocks under other keys, of the layout's rank.

    Dask fuses an alias with its task under the alias's key, so an alias costs little until the two
    would be fused with a further task.
    """
    aliases = {}
    for key in itertools.product([blocks.name], *map(range, blocks.numblocks)):
        own = (name, *key[1 : 1 + layout.ndim])
        aliases[own] = Alias(own, key)
    graph = HighLevelGraph(
        {**blocks.dask.layers, name: MaterializedLayer(aliases)},
        {**blocks.dask.dependencies, name: {blocks.name}},
    )
    return da.Array(graph, name, sizes, dtype=dtype, meta=np.empty((0,) * layout.ndim, dtype))


def _out_index(layout: Layout) -> tuple[str, ...]:
    return tuple(_ROWS if i == layout.axis else f"out.{i}" for i in range(layout.ndim))


def _pairs(
    request: Request, arrays: Mapping[str, Any], out_index: Sequence[str], n_chunks: int
) -> list[Any]:
    """Return the inputs and their indices for `blockwise`; small inputs become literals."""
    (stage,) = request.stages.stages
    ones = [index for index in out_index if index != _ROWS]
    pairs: list[Any] = []
    for name in (spec.name for spec in stage.inputs):
        array, axis = arrays[name], request.batch.input_axes[name]
        if not isinstance(array, da.Array):
            if array.nbytes <= LITERAL_BYTES and array.dtype != object:
                pairs += [array, None]
                continue
            array = da.from_array(array, chunks=-1)
        elif axis is None and n_chunks > 1:
            # Fused into the tasks of all chunks, this input would be computed once for each. An
            # index that the output lacks keeps Dask from fusing any input.
            pairs += [array, tuple(f"{name}.{i}" for i in range(array.ndim))]
            continue
        pairs += [array, _in_index(name, array.ndim, axis, ones)]
    return pairs


def _in_index(name: str, ndim: int, batch_axis: int | None, ones: list[str]) -> tuple[str, ...]:
    """Return an input's indices: its axes of one block take those of the output in order.

    The last of them is repeated as needed.
    """
    others = [*ones, *ones[-1:] * ndim] or [f"{name}.{i}" for i in range(ndim)]
    left = iter(others)
    return tuple(_ROWS if i == batch_axis else next(left) for i in range(ndim))


def _indices(pairs: Sequence[Any]) -> set[str]:
    return {index for indices in pairs[1::2] if indices for index in indices}


def _taken(
    request: Request,
    take: TakeOutput,
    results: da.Array,
    output: str,
    chunks: tuple[float, ...],
    name: str,
) -> da.Array:
    """Return the array of one of several outputs."""
    layout, sizes = output_chunks(request, output, chunks)
    out_index = _out_index(layout)
    one = next((index for index in out_index if index != _ROWS), _ONE)
    return _blockwise(request, take, [results, (_ROWS, one)], out_index, sizes, output, name)


def _blockwise(
    request: Request,
    function: Any,
    pairs: Sequence[Any],
    out_index: tuple[str, ...],
    sizes: Sequence[tuple[float, ...]],
    output: str,
    name: str,
) -> da.Array:
    """Apply a function to blocks.

    Parameters
    ----------
    pairs : sequence
        Inputs and their indices, in turn.
    sizes : sequence of tuple of float
        Sizes of the result's blocks along each axis.
    """
    by_index = dict(zip(out_index, sizes, strict=True))
    known = _indices(pairs)
    dtype = request.dtype(output)
    result: da.Array = da.blockwise(
        function,
        out_index,
        *pairs,
        name=name,
        dtype=dtype,
        meta=np.empty((0,) * len(out_index), dtype=dtype),
        new_axes={index: size for index, size in by_index.items() if index not in known},
        adjust_chunks={index: size for index, size in by_index.items() if index in known},
        align_arrays=False,
        concatenate=None,
    )
    return result


def output_chunks(
    request: Request, output: str, chunks: tuple[float, ...]
) -> tuple[Layout, tuple[tuple[float, ...], ...]]:
    """Return the layout of an output's keys, and the chunks along each of its axes.

    Parameters
    ----------
    request : Request
        Checked request.
    output : str
        Name of the output.
    chunks : tuple of int or float
        Rows of each chunk of the inputs.

    Raises
    ------
    InputError
        The rank of the output is unknown.
    """
    sizes = request.batch.sizes[output]
    kind = request.spec(output).kind
    if kind is not None:
        raise InputError(
            f"output {output!r} is {kind}, which cannot be a dask.array",
            "pass Delayed or a bag instead, or name the tensors that it is made of: outputs=[...]",
            option="outputs",
        )
    if sizes is None:
        raise InputError(
            f"the rank of output {output!r} does not follow from the graph",
            "pass Delayed instead of a dask.array, or declare the output's shape in the model",
            option="outputs",
        )
    axis = request.batch.output_axes[output]
    rows = tuple(chunk if axis is not None and sizes[axis] == 1 else math.nan for chunk in chunks)
    own = tuple(rows if i == axis else (size,) for i, size in enumerate(sizes))
    return Layout(len(sizes), -1 if axis is None else axis), own


def block_type(request: Request, output: str, label: str) -> BlockType:
    """Return the dtype and sizes that an output's array declares of its blocks, but for rows."""
    layout, own = output_chunks(request, output, (math.nan,))
    sizes = tuple(math.nan if i == layout.axis else axis[0] for i, axis in enumerate(own))
    return BlockType(output, label, request.spec(output).dtype, sizes)


def feeds_token(arrays: Mapping[str, Any]) -> str:
    """Return a digest of the inputs: of dask arrays by name, of arrays in memory by content."""
    return digest(
        {
            name: array.name if isinstance(array, da.Array) else str(tokenize(array))
            for name, array in arrays.items()
        }
    )
