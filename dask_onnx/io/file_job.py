"""From a data set to a data set: read, prepare, predict, finish and write, block by block."""

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


@dataclass(frozen=True, slots=True)
class NamedFunction:
    """A function by module and name: it travels as that, and is imported where it runs."""

    text: str
    option: str

    def resolve(self) -> Callable[..., Any]:
        """The function itself.

        Raises
        ------
        InputError
            It cannot be imported from here.
        """
        module, separator, name = self.text.partition(":")
        if not separator or not module or not name:
            raise InputError(
                f"{self.option} is {self.text!r}",
                "give it as MODULE:FUNCTION, such as prepare:crop",
            )
        try:
            function: Any = importlib.import_module(module)
        except ImportError as error:
            raise InputError(
                f"{self.option} names module {module!r}, which cannot be imported: {error}",
                "run from the module's folder, or install it, on the workers too",
            ) from error
        for part in name.split("."):
            if not hasattr(function, part):
                raise InputError(
                    f"{self.option}: module {module!r} has no {name!r}", "check the spelling"
                )
            function = getattr(function, part)
        result: Callable[..., Any] = function
        return result


@dataclass(frozen=True, slots=True)
class Prepare:
    """The caller's function from what was read to what the model takes."""

    names: tuple[str, ...]
    """Of the arrays that come in; ("",) for one without a name."""
    function: NamedFunction
    only: str | None = None
    """The one input that is wanted of several; None leaves the result as it is."""

    def __call__(self, *blocks: Any) -> Any:
        arrays = [_unwrap(block) for block in blocks]
        given = arrays[0] if self.names == ("",) else dict(zip(self.names, arrays, strict=True))
        result = self.function.resolve()(given)
        return result if self.only is None else result[self.only]


@dataclass(frozen=True, slots=True)
class TakeInput:
    """One input out of what the caller's function returned."""

    name: str

    def __call__(self, block: Any) -> Any:
        return _unwrap(block)[self.name]


@dataclass(frozen=True, slots=True)
class WriteBlock:
    """The last step of a block: the caller's function, then the sink. Gives the rows written."""

    sink: Sink
    names: tuple[str, ...]
    post: NamedFunction | None
    single: str
    """What a result without a name is called."""

    def __call__(self, place: Any, *blocks: Any) -> Any:
        ((block, start, stop),) = _unwrap(place)
        values = finish_values(self.post, self.names, [_unwrap(b) for b in blocks], self.single)
        self.sink.write(int(block), int(start), int(stop), values)
        return np.array([stop - start])


def finish_values(
    post: NamedFunction | None, names: tuple[str, ...], arrays: list[Any], single: str
) -> dict[str, Any]:
    """Arrays by name, after the caller's function."""
    if post is None:
        return dict(zip(names, arrays, strict=True))
    given = arrays[0] if len(names) == 1 else dict(zip(names, arrays, strict=True))
    result = post.resolve()(given)
    if isinstance(result, Mapping):
        return {str(name): np.asarray(value) for name, value in result.items()}
    return {single: np.asarray(result)}


def _unwrap(block: Any) -> Any:
    """`blockwise` hands over an axis that the result lacks as a list of blocks: here of one."""
    while isinstance(block, list):
        (block,) = block
    return block


def output_specs(values: Mapping[str, Any]) -> tuple[OutputSpec, ...]:
    """What a probe of the first rows gave, as specs."""
    return tuple(
        OutputSpec(name, value.dtype, tuple(value.shape[1:])) for name, value in values.items()
    )


def read_blocks(
    source: Mapping[str, FileArray],
    block_rows: int,
    prepare: NamedFunction | None,
    prepared: Mapping[str, OutputSpec],
) -> dict[str, da.Array]:
    """The model's inputs as lazy arrays that read by path.

    Parameters
    ----------
    prepared : mapping of input name to OutputSpec
        What `prepare` gives, as a probe of the first rows found it; {"": spec} for one array.
    """
    arrays = {name: array.to_dask(block_rows) for name, array in source.items()}
    if prepare is None:
        return arrays
    pairs = [part for array in arrays.values() for part in (array, _index(array, array.name))]
    names = tuple(arrays)
    chunks = next(iter(arrays.values())).chunks[0]
    if set(prepared) == {""}:
        return {"": _blocks(Prepare(names, prepare), pairs, prepared[""], chunks)}
    everything = da.blockwise(
        Prepare(names, prepare),
        (_ROWS,),
        *pairs,
        dtype=object,
        meta=np.empty((0,), object),
        align_arrays=False,
        concatenate=None,
    )
    return {
        name: _blocks(TakeInput(name), [everything, (_ROWS,)], spec, chunks)
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
    """A lazy array with one element a block, the rows that it wrote; computing it does the work."""
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
