"""The package says on import that it does not run on Windows."""

from __future__ import annotations

import subprocess
import sys


def test_an_import_on_windows_fails_with_that_sentence():
    code = "import os; os.name = 'nt'\nimport dask_onnx"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "POSIX systems only" in done.stderr
