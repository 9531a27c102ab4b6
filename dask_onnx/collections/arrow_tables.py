"""Tables of other libraries, such as polars and pyarrow: taken through Arrow, and given back."""

from __future__ import annotations

import sys
from typing import Any

from dask_onnx.collections.kinds import is_table
from dask_onnx.core.errors import InputError
from dask_onnx.io.optional_packages import require_package

_ARRAYS = ("xarray", "dask", "numpy")
"""Libraries whose collections have paths of their own, whatever else they export."""
_LAZY = {
    ("polars", "LazyFrame"): ".collect()",
    ("pyarrow", "Dataset"): ".to_table()",
    ("pyarrow", "FileSystemDataset"): ".to_table()",
    ("pyarrow", "InMemoryDataset"): ".to_table()",
    ("pyarrow", "UnionDataset"): ".to_table()",
    ("pyarrow", "Scanner"): ".to_table()",
}
"""Library and type of a query that is not computed yet, to the call that makes a table of it."""


def is_arrow_data(x: Any) -> bool:
    """Return whether `x` is a table or column that exports Arrow's data, but not pandas' own.

    Raises
    ------
    InputError
        `x` is a query of polars or pyarrow that has not been computed.
    """
    kind = type(x)
    library = kind.__module__.partition(".")[0]
    if call := _LAZY.get((library, kind.__name__)):
        raise InputError(
            f"x is a {library} {kind.__name__}, which has not been computed",
            f"pass a table: x{call}",
            option="x",
        )
    exports = hasattr(kind, "__arrow_c_stream__") or hasattr(kind, "__arrow_c_array__")
    return exports and library not in _ARRAYS and not is_table(x)


def as_pandas(x: Any) -> Any:
    """Return a table or column as pandas' DataFrame or Series, its columns as Arrow has them.

    Parameters
    ----------
    x : table, record batch or column
        Of pyarrow, polars, or anything else that exports Arrow's data.

    Raises
    ------
    InputError
        pandas or pyarrow is not installed, or Arrow does not have a column's type, such as
        polars' Object.
    """
    for package in ("pandas", "pyarrow"):
        require_package(package, f"a table of {type(x).__module__.partition('.')[0]}")
    import pandas as pd  # optional: only tables need it
    import pyarrow as pa  # optional: only tables need it

    from dask_onnx.collections.column_dtypes import without_views  # needs pandas

    _refuse_objects(x)
    try:
        if _is_column(x):
            column = x if isinstance(x, pa.ChunkedArray) else pa.chunked_array(x)
            found = pd.Series(pd.arrays.ArrowExtensionArray(column), name=getattr(x, "name", None))
        else:
            table = pa.table(x).replace_schema_metadata(None)
            found = table.to_pandas(types_mapper=pd.ArrowDtype)
        return without_views(found)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(
            f"pyarrow cannot take the {type(x).__name__}: {error}",
            "cast or drop the columns that Arrow does not have, or convert it yourself: "
            "x.to_pandas()",
            option="x",
            reason=str(error),
        ) from error


def as_given(found: Any, x: Any) -> Any:
    """Return results of pandas as a table of the library of `x`; pyarrow's if it cannot make one.

    Parameters
    ----------
    found : DataFrame, or tuple of these
    x : table, record batch or column
        Input of the caller, whose library the results are for.
    """
    if isinstance(found, tuple):
        return tuple(as_given(each, x) for each in found)
    import pyarrow as pa  # optional: only tables need it

    # Column by column, since Arrow's own conversion of a frame makes nulls of NaN.
    columns = [pa.array(column.array, from_pandas=False) for _, column in found.items()]
    table = pa.table(columns, names=[str(name) for name in found.columns])
    library = type(x).__module__.partition(".")[0]
    from_arrow = getattr(sys.modules.get(library), "from_arrow", None)
    return table if from_arrow is None else from_arrow(table)


def _refuse_objects(x: Any) -> None:
    """Raise an InputError if a table of polars has Python's objects: Arrow gets their addresses."""
    if type(x).__module__.partition(".")[0] != "polars":
        return
    dtypes = dict(x.schema) if hasattr(x, "schema") else {x.name: x.dtype}
    for name, dtype in dtypes.items():
        if str(dtype) == "Object":
            raise InputError(
                f"column {name!r} of the polars {type(x).__name__} has Python's objects",
                "cast it to a type that Arrow has, or drop it: x.drop(...)",
                option="x",
                column=str(name),
            )


def _is_column(x: Any) -> bool:
    """Return whether `x` is one column: its Arrow data are no structure with names."""
    import pyarrow as pa  # optional: only tables need it

    if isinstance(x, pa.Array | pa.ChunkedArray):
        return not pa.types.is_struct(x.type)
    is_whole = isinstance(x, pa.Table | pa.RecordBatch | pa.RecordBatchReader)
    return not is_whole and not hasattr(x, "columns")
