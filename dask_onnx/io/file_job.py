"""Lazy arrays of a file-to-file job: read, preprocess, postprocess and write, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np

from dask_onnx.core.array_values import without_mask
from dask_onnx.io.block_journal import BlockJournal
from dask_onnx.io.caller_functions import NamedFunction
from dask_onnx.io.sinks import OutputSpec, Sink
from dask_onnx.io.sources import FileArray

_ROWS = "rows"
"""Index of the axis of rows in calls of ``blockwise``."""


@dataclass(frozen=True, slots=True)
class BlockPlace:
    """Place of a block in a data set."""

    number: int
    """Position of the block."""
    start: int
    """First row."""
    stop: int
    """Row after the last."""
    path: str
    """Files of the data set, for errors."""

    def __str__(self) -> str:
        return f"rows {self.start:,} to {self.stop - 1:,} of {self.path} (block {self.number:,})"

    @property
    def numbers(self) -> dict[str, float]:
        """Fields of an error about the block."""
        return {"block": self.number, "first_row": self.start, "last_row": self.stop - 1}


def _place(value: Any, path: str) -> BlockPlace:
    ((block, start, stop),) = _unwrap(value)
    return BlockPlace(int(block), int(start), int(stop), path)


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Task function that applies the caller's function to the arrays of one block."""

    names: tuple[str, ...]
    """Names of the arrays; ("",) for one without a name, which is passed bare."""
    function: NamedFunction
    path: str
    """Files of the data set, for errors."""

    def __call__(self, place: Any, *blocks: Any) -> Any:
        """Return the result of the function: an array, or a mapping of arrays by input name.

        Parameters
        ----------
        place : ndarray of shape (1, 3)
            Number of the block, its first row, and the row after its last.
        *blocks
            Arrays of the block.

        Raises
        ------
        InputError, StageError
            As for `NamedFunction.call`.
        """
        where = _place(place, self.path)
        arrays = [_unwrap(block) for block in blocks]
        given = arrays[0] if self.names == ("",) else dict(zip(self.names, arrays, strict=True))
        return self.function.call(given, str(where), where.numbers)


@dataclass(frozen=True, slots=True)
class SelectInput:
    """Task function that selects one input from the result of `Preprocess`."""

    name: str
    """Name of the model's input."""

    def __call__(self, block: Any) -> Any:
        """Return the array for the input."""
        return _unwrap(block)[self.name]


@dataclass(frozen=True, slots=True)
class WriteBlock:
    """Task function of the last step of a block: postprocess and write."""

    sink: Sink
    names: tuple[str, ...]
    """Names of the model's outputs, in the order of the blocks."""
    post: NamedFunction | None
    single: str
    """Name of a result of `post` that is an array without a name."""
    path: str = "the input"
    """Files of the data set, for errors."""
    journal: BlockJournal | None = None
    """Journal in which a block is recorded once it is written."""

    def __call__(self, place: Any, *blocks: Any) -> Any:
        """Write one block and return its number of rows, shape (1,).

        Parameters
        ----------
        place : ndarray of shape (1, 3)
            Number of the block, its first row, and the row after its last.
        *blocks
            The model's outputs.
        """
        at = _place(place, self.path)
        arrays = [_unwrap(block) for block in blocks]
        values = apply_post(self.post, self.names, arrays, self.single, str(at), at.numbers)
        written = self.sink.write(at.number, at.start, at.stop, values)
        if self.journal is not None:
            self.journal.record(at.number, [at.stop - at.start], written)
        return np.array([at.stop - at.start])


def apply_post(
    post: NamedFunction | None,
    names: tuple[str, ...],
    arrays: list[Any],
    single: str,
    where: str = "the first rows",
    numbers: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Return arrays by name after the caller's function.

    Parameters
    ----------
    post : NamedFunction or None
        Takes one array, or a dict of several by name.
    names : tuple of str
        Names of `arrays`.
    single : str
        Name of a result that is not a mapping.
    where, numbers
        The block, for errors; see `NamedFunction.call`.

    Raises
    ------
    InputError, StageError
        As for `NamedFunction.call`.
    """
    if post is None:
        return dict(zip(names, arrays, strict=True))
    given = arrays[0] if len(names) == 1 else dict(zip(names, arrays, strict=True))
    result = post.call(given, where, numbers)
    if isinstance(result, Mapping):
        return {str(name): _unmasked(value) for name, value in result.items()}
    return {single: _unmasked(result)}


def _unmasked(value: Any) -> Any:
    """Return what ``post`` gave as an array: files have no masks."""
    return without_mask(value, "what post returned", option="post")


def _unwrap(block: Any) -> Any:
    """Return the single block in lists: ``blockwise`` nests blocks along axes that it contracts."""
    while isinstance(block, list):
        (block,) = block
    return block


def output_specs(values: Mapping[str, Any]) -> tuple[OutputSpec, ...]:
    """Return the specs of arrays whose first axis is the rows."""
    return tuple(
        OutputSpec(name, value.dtype, tuple(value.shape[1:])) for name, value in values.items()
    )


def read_blocks(
    source: Mapping[str, FileArray],
    block_rows: int,
    prepare: NamedFunction | None,
    prepared: Mapping[str, OutputSpec],
    first: int = 0,
    path: str = "",
) -> dict[str, da.Array]:
    """Return the model's inputs as lazy arrays that are read by path in the tasks.

    Parameters
    ----------
    source : mapping of str to FileArray
        Arrays to read, by name.
    block_rows : int
        Rows of a block.
    prepare : NamedFunction or None
        Function from the arrays of a block to the model's inputs.
    prepared : mapping of str to OutputSpec
        Specs of the results of `prepare`, found by running it on the first rows; ``{"": spec}`` if
        it returns one array.
    first : int
        Number of the first of the blocks, where `source` is a part of a data set.
    path : str
        Description of the data set, for errors; by default its files.
    """
    arrays = {name: array.to_dask(block_rows) for name, array in source.items()}
    if prepare is None:
        return arrays
    rows = next(iter(source.values())).shape[0]
    pairs = [_places(block_rows, rows, first), (_ROWS, "place")]
    pairs += [part for array in arrays.values() for part in (array, _index(array, array.name))]
    preprocess = Preprocess(tuple(arrays), prepare, path or described(source))
    chunks = next(iter(arrays.values())).chunks[0]
    if set(prepared) == {""}:
        return {"": _blocks(preprocess, pairs, prepared[""], chunks)}
    # One task of each block runs the function; the others select from its result.
    everything = da.blockwise(
        preprocess,
        (_ROWS,),
        *pairs,
        dtype=object,
        meta=np.empty((0,), object),
        align_arrays=False,
        concatenate=None,
    )
    return {
        name: _blocks(SelectInput(name), [everything, (_ROWS,)], spec, chunks)
        for name, spec in prepared.items()
    }


def _blocks(function: Any, pairs: list[Any], spec: OutputSpec, chunks: tuple[int, ...]) -> da.Array:
    index = (_ROWS, *(f"prepared.{i}" for i in range(len(spec.row_shape))))
    array: da.Array = da.blockwise(
        function,
        index,
        *pairs,
        dtype=spec.dtype,
        meta=np.empty((0,) * len(index), spec.dtype),
        new_axes=dict(zip(index[1:], spec.row_shape, strict=True)),
        adjust_chunks={_ROWS: chunks},
        align_arrays=False,
        concatenate=None,
    )
    return array


def described(source: Mapping[str, FileArray]) -> str:
    """Return the files of a data set in words, for errors."""
    first = next(iter(source.values()))
    if not first.files:
        return str(getattr(first, "url", "the input"))
    path, others = first.files[0].path, len(first.files) - 1
    return f"{path} and {others:,} other files" if others else path


def _places(block_rows: int, rows: int, first: int) -> da.Array:
    """Return number, first row and end of each block, one block in each chunk.

    Parameters
    ----------
    block_rows : int
    rows : int
        Rows of these blocks together.
    first : int
        Number of the first of them in the data set.
    """
    numbers = np.arange(first, first + -(-rows // block_rows))
    starts = numbers * block_rows
    ends = np.minimum(starts + block_rows, first * block_rows + rows)
    places = np.stack([numbers, starts, ends], axis=1)
    array: da.Array = da.from_array(places, chunks=(1, 3))
    return array


def _index(array: da.Array, name: str) -> tuple[str, ...]:
    return (_ROWS, *(f"{name}.{i}" for i in range(1, array.ndim)))


def write_blocks(
    outputs: Mapping[str, da.Array], block_rows: int, rows: int, write: WriteBlock, first: int = 0
) -> da.Array:
    """Return a lazy array with the number of rows of each block; computing it writes the blocks.

    Parameters
    ----------
    outputs : mapping of str to dask.array.Array
        The model's outputs, in the order of ``write.names``, with blocks of `block_rows` rows.
    rows : int
        Rows of these blocks together.
    write : WriteBlock
    first : int
        Number of the first of the blocks in the data set.
    """
    places = _places(block_rows, rows, first)
    pairs: list[Any] = [places, (_ROWS, "place")]
    for array in outputs.values():
        pairs += [array, _index(array, array.name)]
    done: da.Array = da.blockwise(
        write,
        (_ROWS,),
        *pairs,
        dtype=np.int64,
        meta=np.empty((0,), np.int64),
        adjust_chunks={_ROWS: places.chunks[0]},
        align_arrays=False,
        concatenate=None,
    )
    return done
