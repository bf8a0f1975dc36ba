"""Fits in parallel processes, each on one thread."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from typing import TypeVar

import torch
from joblib import Parallel, delayed
from tqdm import tqdm
from tqdm.utils import ObjectWrapper

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None, what: str
) -> list[Result]:
    """`function` of each item in parallel processes, each of which computes with one thread.

    Function, items and results are sent from process to process. The results are in the order of
    `items`, which is the order in which they begin; the first error is raised. There are as many
    processes as `workers`, one a core where it is None, and they are kept for a while, for the next
    call. `what` is the items' name, for the progress bar.
    """
    workers = workers or os.cpu_count() or 1
    pool = Parallel(min(workers, len(items)) or 1, return_as="generator", max_nbytes=None)
    with _sigint_ignored():
        results = pool(delayed(_on_one_thread)(function, item) for item in items)
    return list(tqdm(results, total=len(items), desc=what, disable=None, leave=False))


@contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, of which each would say much: this one ends them.

    Only the main thread can do so.
    """
    before = signal.getsignal(signal.SIGINT)
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGINT, before)


def _on_one_thread(function: Callable[[Item], Result], item: Item) -> Result:
    # tqdm's own lock is for many processes: where one is killed, Python warns of what it leaves.
    tqdm.set_lock(threading.RLock())
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with redirect_stderr(_NotATerminal(sys.stderr)):
            return function(item)
    finally:
        torch.set_num_threads(n_threads)


class _NotATerminal(ObjectWrapper):
    """A stream on which bars with ``disable=None`` stay away: the caller's bar is for all items."""

    def isatty(self) -> bool:
        return False
