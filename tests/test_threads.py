"""Computations side by side: all results in order, one thread each, the first error raised."""

from __future__ import annotations

import threading
from contextvars import ContextVar

import pytest
import torch

from dlcf.threads import map_in_threads

setting: ContextVar[str] = ContextVar("setting", default="outside")


@pytest.mark.parametrize("n_threads", [1, 2])
def test_results_come_in_order_whatever_the_threads(n_threads: int) -> None:
    torch.set_num_threads(n_threads)  # reset_randomness puts it back
    token = setting.set("inside")
    seen = []

    def compute(item: int) -> int:
        seen.append((torch.get_num_threads(), setting.get(), threading.get_ident()))
        return item**2

    assert map_in_threads(compute, range(20)) == [item**2 for item in range(20)]
    setting.reset(token)
    assert {(n, value) for n, value, _ in seen} == {(1, "inside")}
    assert torch.get_num_threads() == n_threads
    apart = {thread for *_, thread in seen} - {threading.get_ident()}
    assert len(apart) <= n_threads and bool(apart) == (n_threads > 1)


def test_two_computations_run_at_the_same_time() -> None:
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=10)
    assert sorted(map_in_threads(lambda _: both.wait(), [0, 1])) == [0, 1]


def test_an_error_ends_it() -> None:
    torch.set_num_threads(2)
    done = []

    def fail(item: int) -> None:
        if item == 0:
            raise ValueError("the first")
        done.append(item)

    with pytest.raises(ValueError, match="the first"):
        map_in_threads(fail, range(100))
    assert torch.get_num_threads() == 2
