"""A process's share of the machine."""

import os

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from edgeq.processors import processors, shared, single_products


@pytest.mark.parametrize(("cores", "processes", "share"), [(16, 1, 16), (16, 4, 4), (7, 2, 3), (2, 8, 1), (None, 2, 1)])
def test_a_process_has_its_share_and_never_none(monkeypatch, cores, processes, share):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    with shared(processes):
        assert processors() == share
    assert processors() == (cores or 1)


def test_products_have_a_thread_each_and_then_what_they_had():
    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = threads()
    assert before or np.__config__.show(mode="dicts")["Build Dependencies"]["blas"]["name"] == "accelerate"
    with single_products():
        assert set(threads()) <= {1}
    assert threads() == before
