"""Errors about sizes name the multiple that a model takes."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from builders import make_model, node, value
from image_models import u_net

import dask_onnx as dx


@pytest.mark.parametrize(("levels", "size", "axis"), [(3, (24, 41), 3), (5, (50, 64), 2)])
def test_a_rejected_size_is_answered_with_the_multiple(levels, size, axis):
    model = dx.load(u_net(levels))
    image = np.zeros((2, 1, *size), np.float32)
    lazy = model.predict(da.from_array(image, chunks=(1, -1, -1, -1)))
    for run in (lambda: model.predict(image), lambda: lazy.compute(scheduler="sync")):
        with pytest.raises(dx.RunError) as caught:
            run()
        error = caught.value
        assert (error.input, error.axis) == ("x", axis)
        assert error.numbers["multiple"] == 2**levels
        assert error.numbers["size"] == size[axis - 2]
        assert error.reason is not None and str(2**levels) in error.next_step


def test_other_failures_keep_their_advice():
    proto = make_model(
        [node("Reshape", "x target", "y")],
        [value("x", ("N", "T", "D"))],
        [value("y", None)],
        {"target": np.array([-1, 7, 3])},
    )
    with pytest.raises(dx.RunError) as caught:
        dx.load(proto).predict(np.zeros((1, 5, 5), np.float32), batch_size=None)
    assert "multiple" not in caught.value.numbers
