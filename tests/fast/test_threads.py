"""Threads side by side: all results in order, one thread each, the first error raised."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextvars import ContextVar

import pytest
import torch

from dlcf.fast.threads import map_in_threads, n_threads, single_threaded_torch

setting: ContextVar[str] = ContextVar("setting", default="outside")


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_order_whatever_the_threads(count: int) -> None:
    torch.set_num_threads(count)  # reset_randomness puts it back
    token = setting.set("inside")
    seen = []

    def compute(item: int) -> int:
        seen.append((torch.get_num_threads(), setting.get(), threading.get_ident()))
        return item**2

    assert map_in_threads(compute, range(20)) == [item**2 for item in range(20)]
    setting.reset(token)
    assert {(n, value) for n, value, _ in seen} == {(1, "inside")}
    assert torch.get_num_threads() == count
    others = {thread for *_, thread in seen} - {threading.get_ident()}
    assert len(others) <= count and bool(others) == (count > 1)


def test_two_computations_run_at_the_same_time() -> None:
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=10)
    assert sorted(map_in_threads(lambda _: both.wait(), [0, 1])) == [0, 1]


def test_torch_keeps_to_one_thread_inside() -> None:
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=10)
    with single_threaded_torch():
        assert torch.get_num_threads() == 1 and n_threads() == 2
        assert sorted(map_in_threads(lambda _: both.wait(), [0, 1])) == [0, 1]
        nested = map_in_threads(lambda _: map_in_threads(str, [1, 2, n_threads()]), range(9))
        assert nested == [["1", "2", "1"]] * 9
        with single_threaded_torch():
            assert n_threads() == 2
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == n_threads() == 2
    with pytest.raises(ValueError, match="inside"), single_threaded_torch():
        raise ValueError("inside")
    assert torch.get_num_threads() == n_threads() == 2


def test_an_error_ends_it() -> None:
    torch.set_num_threads(2)
    done = []

    def fail(item: int) -> None:
        if item == 0:
            raise ValueError("the first")
        time.sleep(0.01)
        done.append(item)

    with pytest.raises(ValueError, match="the first"):
        map_in_threads(fail, range(100))
    assert len(done) < 50
    assert torch.get_num_threads() == 2
    assert map_in_threads(str, [1, 2]) == ["1", "2"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    program = """
import os, threading, torch
from dlcf.fast.threads import map_in_threads
torch.set_num_threads(2)
both = threading.Barrier(2)
map_in_threads(lambda _: both.wait(), [1, 2])
child = os.fork()
if child == 0:
    os._exit(map_in_threads(str, [1, 2]) != ["1", "2"])
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
