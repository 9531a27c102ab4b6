"""Types of outputs that runs of a node agree on."""

from __future__ import annotations

import numpy as np
import pytest

from dask_onnx.analysis.learned_types import Observation, learned_type
from dask_onnx.core.specs import TensorSpec


def runs(*pairs, dtype=np.float32):
    """Return runs of a node with one input, from (input shape, output shape)."""
    return [Observation((given,), np.zeros(shape, dtype)) for given, shape in pairs]


def spec_of(shape):
    return TensorSpec("x", np.dtype("f4"), shape)


def test_fixed_sizes_and_axes_of_the_input_are_told_apart():
    found = learned_type(runs(((2, 8), (2, 1)), ((3, 9), (3, 1))))
    assert found.dims == ((0, 0), 1)
    assert found.spec("y", [spec_of((5, 4))]).shape == (5, 1)
    assert found.spec("y", [spec_of(("N", 4))]).shape == ("N", 1)
    assert found.spec("y", [None]).shape == (None, 1)


def test_a_permuted_axis_is_found():
    assert learned_type(runs(((2, 8), (8, 2)), ((3, 9), (9, 3)))).dims == ((0, 1), (0, 0))


def test_a_size_that_depends_on_values_is_open():
    found = learned_type(
        runs(((2, 8), (0, 8)), ((2, 8), (2, 8)), ((3, 9), (0, 9)), ((3, 9), (3, 9)))
    )
    assert found.dims == (None, (0, 1))


@pytest.mark.parametrize(
    "different", [np.zeros((2, 1, 1), np.float32), np.zeros((2, 1), np.int64), None]
)
def test_runs_that_differ_in_rank_or_dtype_say_nothing(different):
    first = Observation(((2, 8),), np.zeros((2, 1), np.float32))
    assert learned_type([first, Observation(((2, 8),), different)]) is None


def test_text_of_any_width_is_text():
    found = learned_type(
        [Observation(((2,),), np.array(["a", "b"])), Observation(((3,),), np.array(["aa"] * 3))]
    )
    assert (found.dtype, found.dims) == (np.dtype(object), ((0, 0),))


def test_lists_have_a_kind():
    found = learned_type([Observation(((2,),), [np.zeros(2, np.float32)])] * 2)
    assert found.spec("s", []).kind == "seq(tensor(float))"
