"""Processes side by side: all results in order, one thread each, one progress bar."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from dlcf.runtime.parallel import map_in_processes
from dlcf.runtime.paths import ROOT


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


@pytest.mark.parametrize("workers", [1, 2])
def test_only_the_outer_loop_has_a_progress_bar(workers: int, tmp_path: Path) -> None:
    """On a terminal, where bars are shown; what else is written to it comes through."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    program = tmp_path / "program.py"
    program.write_text("""
import sys
import threading
from tqdm import tqdm
from dlcf.runtime.parallel import map_in_processes

def fit(item):
    print(f"note {item}", file=sys.stderr)
    return sum(tqdm(range(item), desc="inner", disable=None, mininterval=0))

if __name__ == "__main__":
    assert map_in_processes(fit, [3, 4], int(sys.argv[1]), "outer") == [3, 6]
    assert sys.stderr.isatty()
""")
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, str(program), str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        subprocess.run(command, env=environment, stderr=writer, check=True, timeout=120)
        os.set_blocking(reader, False)
        shown = os.read(reader, 100_000).decode()
    finally:
        os.close(reader)
        os.close(writer)
    assert "outer" in shown and "inner" not in shown
    assert "note 3" in shown and "note 4" in shown


def bars_lock(_: int) -> bool:
    with tqdm(range(1), disable=True) as bar:
        return isinstance(bar.get_lock(), type(threading.RLock()))


def test_bars_in_the_processes_leave_no_semaphore() -> None:
    """With tqdm's own lock, Python warns of them where a process is killed, after our last line."""
    assert map_in_processes(bars_lock, range(2), 2, "items") == [True, True]
