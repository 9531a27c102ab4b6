"""Multiples of pixels that models take, found from their graphs."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from image_models import brightness, u_net

import dask_onnx as dx
from dask_onnx.analysis.size_conflicts import conflict_at
from dask_onnx.analysis.size_multiples import accepted_multiple


def multiple_of(proto):
    model = dx.load(proto)
    spec = model.inputs[0]
    return accepted_multiple(model.facts, spec.name, spec.shape, (2, 3), model._facts.schemas)


@pytest.mark.parametrize("levels", [0, 1, 3, 5])
def test_the_multiple_of_a_u_net_is_two_to_the_power_of_its_levels(levels):
    assert multiple_of(u_net(levels)) == 2**levels


def test_a_model_that_takes_any_size_has_the_multiple_1():
    assert multiple_of(brightness()) == 1


@pytest.mark.parametrize("size", [(24, 40), (25, 40), (24, 36), (23, 23)])
def test_a_conflict_is_found_where_onnxruntime_fails(size):
    proto = u_net(3)
    model = dx.load(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    shape = (1, 1, *size)
    conflict = conflict_at(model.facts, {"x": shape}, model._facts.schemas)
    if conflict is None:
        assert session.run(None, {"x": np.zeros(shape, np.float32)})[0].shape == shape
        return
    with pytest.raises(Exception, match="Add"):
        session.run(None, {"x": np.zeros(shape, np.float32)})


@pytest.mark.real
def test_the_detector_of_paddleocr_takes_multiples_of_32(asset):
    assert multiple_of(asset("det.onnx")) == 32
