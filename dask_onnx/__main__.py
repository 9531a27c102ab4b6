"""``python -m dask_onnx``, the same as ``dask-onnx``."""

from dask_onnx.cli import run

if __name__ == "__main__":
    run()
