from __future__ import annotations

import subprocess
import sys

import pytest

from dask_onnx.core import config


def test_settings_made_before_the_package_is_used_take_no_default_with_them():
    code = (
        "import dask, dask_onnx\n"
        "with dask.config.set({'dask_onnx.retries': 5}):\n"
        "    from dask_onnx import config\n"
        "    print(config.get('retries'))\n"
        "print(config.get('retries'), config.get('session.shared-pool'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["5", "3", "False"], done.stderr


def test_a_key_that_does_not_exist_is_a_mistake_of_ours():
    with pytest.raises(KeyError):
        config.get("session.no-such-thing")
