"""Computations side by side: all results in order, one thread each, the first error raised."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextvars import ContextVar
from functools import partial
from pathlib import Path

import pytest
import torch

from dlcf.runtime.parallel import (
    _NoTerminal,
    map_in_processes,
    map_in_threads,
    threads_apart,
    threads_to_use,
)

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


def test_torch_keeps_to_one_thread_where_threads_work_apart() -> None:
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=10)
    with threads_apart():
        assert torch.get_num_threads() == 1 and threads_to_use() == 2
        assert sorted(map_in_threads(lambda _: both.wait(), [0, 1])) == [0, 1]
        nested = map_in_threads(lambda _: map_in_threads(str, [1, 2, threads_to_use()]), range(9))
        assert nested == [["1", "2", "1"]] * 9
        with threads_apart():
            assert threads_to_use() == 2
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads_to_use() == 2
    with pytest.raises(ValueError, match="inside"), threads_apart():
        raise ValueError("inside")
    assert torch.get_num_threads() == threads_to_use() == 2


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
from dlcf.runtime.parallel import map_in_threads
torch.set_num_threads(2)
both = threading.Barrier(2)
map_in_threads(lambda _: both.wait(), [1, 2])
child = os.fork()
if child == 0:
    os._exit(map_in_threads(str, [1, 2]) != ["1", "2"])
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def report(folder: Path, item: int) -> tuple[int, int, int]:
    """Waits until another process is here too."""
    if item == 7:
        raise ValueError("the seventh")
    (folder / f"{os.getpid()}").touch()
    end = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    return item**2, torch.get_num_threads(), os.getpid()


def test_processes_work_at_the_same_time_with_one_thread_each(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    found = map_in_processes(partial(report, tmp_path), range(5), 2, "items")
    assert [square for square, *_ in found] == [0, 1, 4, 9, 16]
    assert {n_threads for _, n_threads, _ in found} == {1}
    assert len({pid for *_, pid in found} - {os.getpid()}) == 2
    assert torch.get_num_threads() == 2
    with pytest.raises(ValueError, match="the seventh"):
        map_in_processes(partial(report, tmp_path), range(5, 9), 2, "items")
    assert map_in_processes(partial(report, tmp_path), [], 2, "items") == []


def test_progress_bars_of_processes_stay_away(capfd: pytest.CaptureFixture[str]) -> None:
    stream = _NoTerminal()
    assert not stream.isatty()
    stream.write("a warning")
    assert capfd.readouterr().err == "a warning"
