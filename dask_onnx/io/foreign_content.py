"""Errors about files whose content is of another kind than their names say."""

from __future__ import annotations

from collections.abc import Mapping

from dask_onnx.core.content_kinds import KIND_NAMES, content_kind
from dask_onnx.core.errors import InputError

_RENAME = "give its name the suffix {suffix}"
_NEXT_STEPS: Mapping[str, str] = {
    "lfs": "fetch the file: git lfs pull",
    "page": "download the file itself: on a hub, its address has resolve/ in place of blob/",
    "feather 1": "write it again as version 2: pyarrow.feather.write_feather(table, path)",
    "utf-16": "convert it first, since it cannot be read by blocks: iconv -f UTF-16 -t UTF-8",
    "utf-32": "convert it first, since it cannot be read by blocks: iconv -f UTF-32 -t UTF-8",
    "spreadsheet": "save the sheet as .csv, or with pandas: pd.read_excel(path).to_parquet(...)",
    "sqlite": "write the table as Parquet, as with pandas: pd.read_sql(...).to_parquet(...)",
    "avro": "write the records as Parquet or JSON lines",
    "pickle": "save the data with np.save or as Parquet; a pickle can run code when it is read",
    "gzip": _RENAME.format(suffix=".gz at its end"),
    "bzip2": _RENAME.format(suffix=".bz2 at its end"),
    "xz": _RENAME.format(suffix=".xz at its end"),
    "zstd": _RENAME.format(suffix=".zst at its end"),
    "parquet": _RENAME.format(suffix=".parquet"),
    "arrow": _RENAME.format(suffix=".arrow"),
    "arrow stream": _RENAME.format(suffix=".arrow"),
    "orc": _RENAME.format(suffix=".orc"),
    "npy": _RENAME.format(suffix=".npy"),
    "zip": "unpack it first; of arrays that np.savez wrote, give its name the suffix .npz",
    "tar": "unpack it first",
}
_TEXT_FORMATS = ("csv", "jsonl")
_TEXT_KINDS = ("lfs", "page", "pdf", "utf-16", "utf-32")
"""Kinds that are told by text alone; marks of others may be the name of a column, such as PAR1."""
_FIRST_PRINTABLE = 9
"""Lowest code that a text has: a tab."""
_OWN = {"ipc": ("arrow", "arrow stream"), "parquet": ("parquet",), "orc": ("orc",), "npy": ("npy",)}
"""Kinds of content that a format has by definition."""


def foreign_content(
    head: bytes, file_format: str, path: str, *, has_encoding: bool = False
) -> InputError | None:
    """Return the error about a file whose content is of another kind than its format.

    Parameters
    ----------
    head : bytes
        Its first bytes, decompressed if its name says so.
    file_format : str
        Format by its name, such as "csv".
    path : str
    has_encoding : bool
        True if the caller names an encoding other than UTF-8.

    Returns
    -------
    InputError or None
        None if the content is of no other kind that is known.
    """
    kind = content_kind(head)
    if kind is None or kind in _OWN.get(file_format, ()):
        return None
    if file_format in _TEXT_FORMATS:
        is_binary = min(head, default=_FIRST_PRINTABLE) < _FIRST_PRINTABLE
        is_encoded = has_encoding and kind.startswith("utf")
        if is_encoded or (kind not in _TEXT_KINDS and not is_binary):
            return None
    return InputError(
        f"{path} is {KIND_NAMES[kind]}, not {file_format} as its name says",
        _NEXT_STEPS.get(kind, "pass the data in a format that is read: Parquet, CSV, JSON lines"),
        option="path",
        reason=kind,
    )
