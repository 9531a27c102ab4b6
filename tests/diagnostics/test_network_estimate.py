"""The bytes of a network, held against what interfaces between two network namespaces counted."""

from __future__ import annotations

import pytest
from profile_builders import A, B, small_profile

from dask_onnx.diagnostics.profiling.finished_profile import FinishedProfile
from dask_onnx.diagnostics.profiling.network_estimate import network_bytes

# Messages of PP-OCR's detector in four stages on two workers, and `tx_bytes` of both interfaces.
MEASURED = ((47_938_719, 27_448_489, 50_280_620), (27_448_489, 47_938_719, 29_309_606))


@pytest.mark.parametrize(("sent", "received", "counted"), MEASURED)
def test_an_estimate_is_within_two_percent_of_what_interfaces_counted(sent, received, counted):
    assert network_bytes(sent, received, A, B) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("receiver", [A, "tcp://10.0.0.1:2000", "inproc://1", "client"])
def test_nothing_is_estimated_where_no_network_is_known_to_be(receiver):
    assert network_bytes(1000, 0, A, receiver) is None


def test_links_have_the_estimate_beside_the_bytes_of_messages():
    rows = {(r["sender"], r["receiver"]): r for r in FinishedProfile(small_profile()).rows("link")}
    row = rows[A, B]
    assert row["network_bytes"] == network_bytes(row["wire_bytes"], 0, A, B) > row["wire_bytes"]
