"""Lazy arrays of a file-to-file job: read, preprocess, postprocess and write, block by block."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np

from dask_onnx.core.errors import InputError
from dask_onnx.io.sinks import OutputSpec, Sink
from dask_onnx.io.sources import FileArray

_ROWS = "rows"
"""Index of the axis of rows in calls of ``blockwise``."""


@dataclass(frozen=True, slots=True)
class NamedFunction:
    """A caller's function by module and name, imported where it runs."""

    text: str
    """Module and function, as MODULE:FUNCTION."""
    option: str
    """Name of the option that gives the function, for errors."""

    def resolve(self) -> Callable[..., Any]:
        """Return the function itself.

        Raises
        ------
        InputError
            The text is malformed, or the function cannot be imported in this process.
        """
        module, separator, name = self.text.partition(":")
        if not separator or not module or not name:
            raise InputError(
                f"{self.option} is {self.text!r}",
                "give it as MODULE:FUNCTION, such as prepare:crop",
                option=self.option,
            )
        try:
            function: Any = importlib.import_module(module)
        except ImportError as error:
            raise InputError(
                f"{self.option} names module {module!r}, which cannot be imported: {error}",
                "run from the module's folder, or install it, on the workers too",
                option=self.option,
                reason=str(error),
            ) from error
        for part in name.split("."):
            if not hasattr(function, part):
                raise InputError(
                    f"{self.option} names {name!r}, which module {module!r} does not have",
                    "check the spelling",
                    option=self.option,
                )
            function = getattr(function, part)
        result: Callable[..., Any] = function
        return result


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Task function that applies the caller's function to the arrays of one block."""

    names: tuple[str, ...]
    """Names of the arrays; ("",) for one without a name, which is passed bare."""
    function: NamedFunction

    def __call__(self, *blocks: Any) -> Any:
        """Return the result of the function: an array, or a mapping of arrays by input name."""
        arrays = [_unwrap(block) for block in blocks]
        given = arrays[0] if self.names == ("",) else dict(zip(self.names, arrays, strict=True))
        return self.function.resolve()(given)


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

    def __call__(self, place: Any, *blocks: Any) -> Any:
        """Write one block and return its number of rows, shape (1,).

        Parameters
        ----------
        place : ndarray of shape (1, 3)
            Number of the block, its first row, and the row after its last.
        *blocks
            The model's outputs.
        """
        ((block, start, stop),) = _unwrap(place)
        values = apply_post(self.post, self.names, [_unwrap(b) for b in blocks], self.single)
        self.sink.write(int(block), int(start), int(stop), values)
        return np.array([stop - start])


def apply_post(
    post: NamedFunction | None, names: tuple[str, ...], arrays: list[Any], single: str
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
    """
    if post is None:
        return dict(zip(names, arrays, strict=True))
    given = arrays[0] if len(names) == 1 else dict(zip(names, arrays, strict=True))
    result = post.resolve()(given)
    if isinstance(result, Mapping):
        return {str(name): np.asarray(value) for name, value in result.items()}
    return {single: np.asarray(result)}


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
    """
    arrays = {name: array.to_dask(block_rows) for name, array in source.items()}
    if prepare is None:
        return arrays
    pairs = [part for array in arrays.values() for part in (array, _index(array, array.name))]
    preprocess = Preprocess(tuple(arrays), prepare)
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


def _index(array: da.Array, name: str) -> tuple[str, ...]:
    return (_ROWS, *(f"{name}.{i}" for i in range(1, array.ndim)))


def write_blocks(
    outputs: Mapping[str, da.Array], block_rows: int, rows: int, write: WriteBlock
) -> da.Array:
    """Return a lazy array with the number of rows of each block; computing it writes the blocks.

    Parameters
    ----------
    outputs : mapping of str to dask.array.Array
        The model's outputs, in the order of ``write.names``, with blocks of `block_rows` rows.
    rows : int
        Rows of the data set.
    """
    starts = range(0, rows, block_rows)
    places = np.array([(i, start, min(start + block_rows, rows)) for i, start in enumerate(starts)])
    pairs: list[Any] = [da.from_array(places, chunks=(1, 3)), (_ROWS, "place")]
    for array in outputs.values():
        pairs += [array, _index(array, array.name)]
    done: da.Array = da.blockwise(
        write,
        (_ROWS,),
        *pairs,
        dtype=np.int64,
        meta=np.empty((0,), np.int64),
        adjust_chunks={_ROWS: tuple(1 for _ in starts)},
        align_arrays=False,
        concatenate=None,
    )
    return done
