"""Functions of the tasks of a job over pictures, and the outputs that they write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.collections.bad_rows import ERROR, Found
from dask_onnx.collections.images.decoding import Decoder
from dask_onnx.collections.images.drawing import drawn, png_of, png_of_mask
from dask_onnx.collections.images.image_results import ImageResult
from dask_onnx.collections.images.image_runner import ImageRunner, in_order, results_of
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.io.block_journal import BlockJournal
from dask_onnx.io.picture_files import PictureNames
from dask_onnx.io.picture_folder import PictureFolder
from dask_onnx.io.sinks import OutputSpec, Sink
from dask_onnx.io.table_sinks import TableSink

FILE = "file"
"""Column of the names of pictures."""
_TABLES = ("boxes", "labels", "text")


@dataclass(frozen=True, slots=True)
class PictureOutputs:
    """Outputs of a job: a table, an array or a folder of masks; drawings; and bad pictures."""

    sink: Sink | None
    """Table or array; None if masks go to a folder."""
    masks: PictureFolder | None
    """Folder of masks."""
    drawings: PictureFolder | None
    """Folder of pictures with results drawn over them."""
    bad: TableSink | None
    """Table of pictures that cannot be read."""
    names: PictureNames
    """Short names of the pictures."""
    journal: BlockJournal | None = None
    """Journal in which a block is recorded once it is written."""

    @property
    def is_array(self) -> bool:
        """True if all results go into one array."""
        return self.sink is not None and not isinstance(self.sink, TableSink)

    @property
    def parts(self) -> tuple[Sink | PictureFolder, ...]:
        """Outputs that are written; that of bad pictures is the second, if there is one."""
        places = (self.sink, self.masks, self.bad, self.drawings)
        return tuple(each for each in places if each is not None)

    @property
    def targets(self) -> tuple[str, ...]:
        """Paths or URLs of `parts`."""
        return tuple(each.target for each in self.parts)

    @property
    def checked(self) -> tuple[str, ...]:
        """Those of `targets` that are not folders of pictures, which check themselves."""
        return tuple(each.target for each in (self.sink, self.bad) if each is not None)

    def check(self, task: str, ranks: Mapping[str, int | None]) -> None:
        """Check that results of a task fit the output's format.

        Parameters
        ----------
        task : str
            Form of the results.
        ranks : mapping of str to int or None
            Axes of each output for one picture.

        Raises
        ------
        InputError
            They do not.
        """
        is_table = isinstance(self.sink, TableSink)
        if task in _TABLES and not is_table:
            raise InputError(
                f"results are {task}, which are rows of a table",
                "write .parquet, .csv or .jsonl; or choose task='raw' for the model's own outputs",
                option="path",
                suggestions=[Suggestion("task", "raw")],
            )
        if self.masks is not None and task != "mask":
            raise InputError(
                f"the output {self.masks.target} has no ending, and a folder holds masks; results "
                f"are {task}",
                "write .parquet, .csv or .jsonl, or .npy or .zarr for arrays",
                option="path",
            )
        if is_table and task == "mask":
            raise InputError(
                "results are masks, which do not fit into a table",
                "name a folder (no ending) for PNG files, or .npy or .zarr if all pictures have "
                "one size",
                option="path",
            )
        large = [name for name, rank in ranks.items() if rank is None or rank > 1]
        if is_table and task == "raw" and large:
            raise InputError(
                f"output {large[0]!r} has several axes for each picture, which do not fit into a "
                "column",
                "write .npy or .zarr, or choose another output",
                option="path",
                suggestions=[Suggestion("outputs")],
            )
        if self.is_array and self.bad is not None:
            raise InputError(
                "an array has a row for each picture, and a quarantine takes bad ones out",
                "write .parquet, .csv, .jsonl or a folder, or leave the quarantine out",
                option="quarantine",
            )

    def problem(self) -> str | None:
        """Return why this process cannot write the outputs; None if it can."""
        found = (each.problem() for each in self.parts)
        return next((problem for problem in found if problem is not None), None)

    def prepare(self, rows: int, block_rows: int, specs: tuple[OutputSpec, ...]) -> None:
        """Create the incomplete outputs."""
        if self.sink is not None:
            if self.is_array:
                self.sink.check_outputs(specs)
            self.sink.prepare(rows, block_rows, specs)
        if self.bad is not None:
            self.bad.prepare(0, 0, ())
        for folder in (self.masks, self.drawings):
            if folder is not None:
                folder.prepare()


Shared = tuple[ImageRunner, PictureOutputs]
"""Values that the tasks of all blocks share."""


def probe_picture(shared: Shared, path: str, *supplies: Any) -> tuple[OutputSpec, ...]:
    """Return the shapes of the result of one picture.

    Raises
    ------
    InputError
        The picture cannot be read.
    """
    runner, outputs = shared
    found = runner([path], *supplies)
    _raise_first(runner, found, [path], outputs)
    results = results_of(found)
    if not results:
        raise InputError(
            f"{path}: {found.messages()[0]}",
            "an array takes its shape from the first picture: leave it out",
            option="on_error",
        )
    values = arrays_of(results[0])
    return tuple(OutputSpec(name, value.dtype, value.shape) for name, value in values.items())


def arrays_of(result: ImageResult) -> dict[str, Any]:
    """Return the arrays of a result by name."""
    if result.mask is not None:
        return {"mask": result.mask}
    return {name: np.asarray(value) for name, value in result.outputs.items()}


def write_pictures(
    shared: Shared,
    paths: Sequence[str],
    place: tuple[int, int],
    specs: tuple[OutputSpec, ...],
    *supplies: Any,
) -> list[int]:
    """Run a block of pictures and write its results; return the rows and the bad pictures.

    Parameters
    ----------
    shared : Shared
    paths : sequence of str
    place : (int, int)
        Number of the block, and position of its first picture.
    specs : tuple of OutputSpec
        Shapes of results, if they go into an array.
    supplies
        Results of the tasks that bring the model here.
    """
    runner, outputs = shared
    found = runner(paths, *supplies)
    _raise_first(runner, found, paths, outputs)
    number, _ = place
    rows, written = len(paths), []
    if isinstance(outputs.sink, TableSink):
        frame = _frame(runner, paths, found, outputs)
        written += outputs.sink.write_frame(number, frame)
        rows = len(frame)
    elif outputs.sink is not None:
        written += _write_arrays(outputs.sink, outputs.names, paths, found, place, specs)
    good = zip(found.good.tolist(), results_of(found), strict=True)
    for position, result in good:
        written += _write_files(outputs, paths[position], result, runner)
    if outputs.masks is not None:
        rows = len(found.good)
    if outputs.bad is not None:
        frame = _bad_frame(paths, found, outputs)
        written += outputs.bad.write_frame(number, frame)
    counts = [rows, len(found.errors)]
    if outputs.journal is not None:
        outputs.journal.record(number, counts, written)
    return counts


def _raise_first(
    runner: ImageRunner, found: Found, paths: Sequence[str], outputs: PictureOutputs
) -> None:
    runner.raise_first(found, lambda position: paths[position], len(paths))


def _frame(runner: ImageRunner, paths: Sequence[str], found: Found, outputs: PictureOutputs) -> Any:
    """Return the rows of a block of pictures, with their names."""
    from dask_onnx.collections.images.image_tables import ResultColumns  # needs pandas

    settings, on_error = runner.settings, runner.rows.on_error
    columns = ResultColumns(settings.form, bool(settings.results.labels), on_error == "null")
    is_split = on_error == "split"
    results = results_of(found) if is_split else in_order(found)
    kept = [paths[position] for position in found.good] if is_split else list(paths)
    frame, sources = columns.frame(results)
    frame.insert(0, FILE, _texts([outputs.names.name_of(kept[position]) for position in sources]))
    if on_error == "null":
        messages = dict(zip(found.bad, found.messages(), strict=True))
        frame[ERROR] = _texts([messages.get(int(place)) for place in sources])
    return frame


def _bad_frame(paths: Sequence[str], found: Found, outputs: PictureOutputs) -> Any:
    import pandas as pd  # optional: only tables need it

    names = [outputs.names.name_of(paths[position]) for position in found.bad]
    return pd.DataFrame({FILE: _texts(names), ERROR: _texts(found.messages())})


def _texts(values: Sequence[str | None]) -> Any:
    """Return a column of text, whose type does not depend on the values of a block."""
    import pandas as pd  # optional: only tables need it
    import pyarrow as pa  # optional: only tables need it

    return pd.array(values, dtype=pd.ArrowDtype(pa.string()))


def _write_arrays(
    sink: Sink,
    names: PictureNames,
    paths: Sequence[str],
    found: Found,
    place: tuple[int, int],
    specs: tuple[OutputSpec, ...],
) -> list[str]:
    number, start = place
    rows: dict[str, list[Any]] = {spec.name: [] for spec in specs}
    for path, result in zip(paths, in_order(found), strict=True):
        values = {} if result is None else arrays_of(result)
        for spec in specs:
            value = values.get(spec.name)
            if value is None:
                value = _missing(spec)
            if value.shape != spec.row_shape or value.dtype != spec.dtype:
                raise InputError(
                    f"{names.name_of(path)}: {spec.name!r} has shape {value.shape}, and "
                    f"that of the first picture {spec.row_shape}; an array takes one shape",
                    "bring pictures to one size with resize=, or write masks to a folder",
                    option="resize",
                    suggestions=[Suggestion("resize")],
                )
            rows[spec.name].append(value)
    stacked = {name: np.stack(values) for name, values in rows.items()}
    return sink.write(number, start, start + len(paths), stacked)


def _missing(spec: OutputSpec) -> Any:
    """Return the row of a picture that cannot be read.

    Raises
    ------
    InputError
        The dtype has no missing value.
    """
    if spec.dtype.kind != "f":
        raise InputError(
            f"output {spec.name!r} is {spec.dtype}, which has no missing value for a bad picture",
            "write .parquet or a folder, or leave bad pictures out",
            option="on_error",
        )
    return np.full(spec.row_shape, np.nan, spec.dtype)


def _write_files(
    outputs: PictureOutputs, path: str, result: ImageResult, runner: ImageRunner
) -> list[str]:
    written, name = [], outputs.names.png_of(path)
    if outputs.masks is not None and result.mask is not None:
        written.append(outputs.masks.write(name, png_of_mask(result.mask)))
    if outputs.drawings is not None:
        image = Decoder("RGB", runner.settings.preparation.max_pixels)(path)
        written.append(outputs.drawings.write(name, png_of(drawn(image, result))))
    return written
