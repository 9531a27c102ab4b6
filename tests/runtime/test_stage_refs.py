from __future__ import annotations

import numpy as np

from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.onnx_model import ModelRef
from dask_onnx.runtime.batching import MicroBatches
from dask_onnx.runtime.package_versions import PackageVersions
from dask_onnx.runtime.stage_refs import StageRef, as_ranges, spec_of_value, with_value_types

UNKNOWN = TensorSpec("x", None, None)


def ref_of(spec):
    return StageRef(
        model=ModelRef("token", None),
        label="s",
        nodes=((0, 2), (5, 6)),
        inputs=(spec,),
        outputs=(),
        token="token",
        versions=PackageVersions("1", None),
    )


def test_positions_are_kept_as_ranges():
    assert as_ranges([1, 2, 3, 7, 9, 10]) == ((1, 4), (7, 8), (9, 11))
    assert as_ranges([]) == ()


def test_positions_are_read_back_from_ranges():
    assert ref_of(UNKNOWN).indices == [0, 1, 5]


def test_unknown_types_are_those_of_the_values():
    values = np.zeros((2, 3), "f4")
    assert spec_of_value(UNKNOWN, values) == TensorSpec("x", np.dtype("f4"), (None, None))
    split = MicroBatches((values,), 2, is_padded=False)
    assert spec_of_value(UNKNOWN, split).dtype == np.float32
    assert spec_of_value(UNKNOWN, [values]).kind == "seq(tensor(float))"


def test_a_stage_of_values_with_other_types_has_another_token():
    stage = ref_of(UNKNOWN)
    tokens = {with_value_types(stage, [np.zeros(2, dtype)]).token for dtype in ("f4", "f8")}
    assert len(tokens) == 2 and stage.token not in tokens


def test_a_stage_with_known_types_is_unchanged():
    stage = ref_of(TensorSpec("x", np.dtype("f4"), None))
    assert with_value_types(stage, [np.zeros(2)]) is stage
