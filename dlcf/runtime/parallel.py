"""Several computations at a time, each on one thread: the way to use all cores for many small ones.

Where a matrix product is split over threads, all of them wait for the last, thousands of times a
second; whole computations side by side wait once. Threads are for computations that seldom come
back to Python, whose lock they share; training comes back many times a step, and has processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, redirect_stderr
from contextvars import ContextVar, copy_context
from functools import cache, partial
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed
from tqdm import tqdm

__all__ = ["map_in_processes", "map_in_threads", "threads_apart", "threads_to_use"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_threads_apart: ContextVar[int | None] = ContextVar("threads apart", default=None)


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of each item, as many at a time as torch has threads; each computes with one.

    It must leave torch's random numbers alone, which all threads share. Where one call fails, those
    that have not begun are not made, and the first error is raised.
    """
    before, n_threads = torch.get_num_threads(), threads_to_use()
    if n_threads == 1 or len(items) < 2:
        return [function(item) for item in items]

    def compute(item: Item) -> Result:
        torch.set_num_threads(1)
        _threads_apart.set(None)  # what it calls may not wait for the threads that it runs in
        return function(item)

    pool = _threads(n_threads)
    calls = [pool.submit(copy_context().run, partial(compute, item)) for item in items]
    try:
        return [call.result() for call in calls]
    finally:
        for call in calls:
            call.cancel()
        wait(calls)
        torch.set_num_threads(before)


@contextmanager
def threads_apart() -> Iterator[None]:
    """Inside, torch computes with one thread, :func:`map_in_threads` with as many as torch had.

    For what goes to and fro between the two: torch's own threads wait for their next product by
    running in a circle, for milliseconds, and keep a core from the threads that have work.
    """
    before = torch.get_num_threads()
    token = _threads_apart.set(threads_to_use())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _threads_apart.reset(token)


def threads_to_use() -> int:
    """How many :func:`map_in_threads` uses."""
    return _threads_apart.get() or torch.get_num_threads()


@cache
def _threads(n: int) -> ThreadPoolExecutor:
    """They stay: a matrix product is slow in a thread that has not yet memory of its own for it."""
    return ThreadPoolExecutor(n)


if hasattr(os, "register_at_fork"):  # a forked process has the pool, but not its threads
    os.register_at_fork(after_in_child=_threads.cache_clear)


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None, what: str
) -> list[Result]:
    """`function` of each item in parallel processes, each of which computes with one thread.

    Parameters
    ----------
    function, items
        Sent to the processes, as the results are sent back.
    workers
        Processes, one a core where it is None; they are kept for a while, for the next call.
    what
        The items' name, for the progress bar.

    Returns
    -------
    list
        In the order of `items`, which is the order in which they begin. The first error is raised.
    """
    workers = workers or os.cpu_count() or 1
    pool = Parallel(min(workers, len(items)) or 1, return_as="generator", max_nbytes=None)
    results = pool(delayed(_alone)(function, item) for item in items)
    return list(tqdm(results, total=len(items), desc=what, disable=None, leave=False))


def _alone(function: Callable[[Item], Result], item: Item) -> Result:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with redirect_stderr(_NoTerminal()):
            return function(item)
    finally:
        torch.set_num_threads(n_threads)


class _NoTerminal:
    """The standard error stream, on which progress bars stay away: the caller has one for all."""

    def __init__(self) -> None:
        self.stream = sys.stderr

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def isatty(self) -> bool:
        return False
