"""Placement, and the settings of workers."""

from __future__ import annotations

import dask.config
import pytest
from distributed import Client, LocalCluster

import dask_onnx as dx
from dask_onnx.cluster.placement import COMPRESSION, wants_compression


def test_links_compress_unless_the_setting_is_given():
    with dask.config.set({COMPRESSION: False}):  # Dask's default
        assert wants_compression()


@pytest.mark.parametrize("setting", ["lz4", "snappy", "auto"])
def test_the_users_setting_is_kept(setting):
    with dask.config.set({COMPRESSION: setting}):
        assert not wants_compression()


def test_a_setting_in_the_environment_counts_even_if_it_is_the_default(monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__COMPRESSION", "False")
    with dask.config.set({COMPRESSION: False}):
        assert not wants_compression()


def test_configure_switches_lz4_on_in_workers_and_in_later_ones():
    def setting():
        return dask.config.get(COMPRESSION)

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        assert set(client.run(setting).values()) == {False}
        dx.configure(client)
        cluster.scale(2)
        client.wait_for_workers(2)
        assert set(client.run(setting).values()) == {"lz4"}
