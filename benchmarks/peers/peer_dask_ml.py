"""dask-ml's ParallelPostFit around the fitted pipeline: scikit-learn's engine, not ONNX Runtime.

https://ml.dask.org/modules/generated/dask_ml.wrappers.ParallelPostFit.html,
https://examples.dask.org/machine-learning/parallel-prediction.html
"""

from __future__ import annotations

import dask.dataframe as dd
import joblib
from dask_ml.wrappers import ParallelPostFit
from distributed import Client
from functions import COLUMNS
from peer_by_hand import started
from work import Work

__all__ = ["started", "table"]


# user code: table (peer_by_hand.start)
def table(work: Work, client: Client) -> None:
    fitted = ParallelPostFit(joblib.load(work.estimator))
    rows = dd.read_parquet(work.folder, index="id")
    found = fitted.predict_proba(rows[list(COLUMNS)])
    table = found.to_dask_dataframe(columns=["p0", "p1"], index=rows.index).astype("float32")
    table.to_parquet(work.output, compute=False).optimize().compute()


# end
