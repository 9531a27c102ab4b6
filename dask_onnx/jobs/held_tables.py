"""Tables that are in memory already, as lazy tables of one partition."""

from __future__ import annotations

import uuid

import dask.dataframe as dd
import pandas as pd
from dask.task_spec import Task


def held_table(frame: pd.DataFrame, meta: pd.DataFrame) -> dd.DataFrame:
    """Return a lazy table of one partition that is in memory.

    Parameters
    ----------
    frame : pandas DataFrame
    meta : pandas DataFrame
        The table without rows.
    """
    key = (f"held-{uuid.uuid4().hex}", 0)
    layer = {key: Task(key, Held(frame))}
    found: dd.DataFrame = dd.from_graph(layer, meta, (None, None), [key], "held")
    return found


class Held:
    """Function that returns a table that is in memory already.

    Parameters
    ----------
    frame : pandas DataFrame
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame, self._token = frame, uuid.uuid4().hex

    def __call__(self) -> pd.DataFrame:
        """Return the table."""
        return self._frame

    def __dask_tokenize__(self) -> str:
        return self._token
