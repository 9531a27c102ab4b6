"""Hand-made prediction with a session cached in a global of a module that workers import."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime

_session = None


def one_thread_session(model: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_rows(
    session: onnxruntime.InferenceSession, block: npt.NDArray[np.float32], per_run: int
) -> npt.NDArray[np.float32]:
    """Run a block `per_run` rows at a time."""
    name = session.get_inputs()[0].name
    pieces = [
        session.run(None, {name: block[start : start + per_run]})[0]
        for start in range(0, len(block), per_run)
    ]
    return np.concatenate(pieces)


def predict_block(
    block: npt.NDArray[np.float32], model: str, per_run: int
) -> npt.NDArray[np.float32]:
    global _session
    if _session is None:
        _session = one_thread_session(model)
    return run_rows(_session, block, per_run)


def forget() -> None:
    global _session
    _session = None


_default_session = None


def predict_block_with_defaults(
    block: npt.NDArray[np.float32], model: str, per_run: int
) -> npt.NDArray[np.float32]:
    """Run a block with ORT's default number of threads: all cores, in each process."""
    global _default_session
    if _default_session is None:
        _default_session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return run_rows(_default_session, block, per_run)
