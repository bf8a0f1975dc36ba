"""Several computations at a time in threads, each with one thread of torch.

This replaces torch's own threads where there are many small computations. Torch splits a matrix
product over its threads, which all wait for the slowest, thousands of times a second; whole
computations side by side wait once. Each does on one thread what it would do alone, so the results
are those of a plain loop. It is for computations that seldom come back to Python, whose lock the
threads share; training comes back many times a step and has processes instead
(:mod:`dlcf.runtime.parallel`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import cache, partial
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# How many threads torch had outside of `single_threaded_torch`; None outside of it.
_n_threads: ContextVar[int | None] = ContextVar("n_threads", default=None)


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of each item, :func:`n_threads` at a time; each computes with one.

    It must leave torch's random numbers alone, which all threads share. Where one call fails, those
    that have not begun are not made, and the first error is raised.
    """
    before, n = torch.get_num_threads(), n_threads()
    if n == 1 or len(items) < 2:
        return [function(item) for item in items]

    def compute(item: Item) -> Result:
        torch.set_num_threads(1)
        _n_threads.set(None)  # a nested map would wait for the threads that it runs in
        return function(item)

    pool = _pool(n)
    calls = [pool.submit(copy_context().run, partial(compute, item)) for item in items]
    try:
        return [call.result() for call in calls]
    finally:
        for call in calls:
            call.cancel()
        wait(calls)
        torch.set_num_threads(before)


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Inside, torch computes with one thread, :func:`map_in_threads` with as many as torch had.

    For code that alternates between the two: after a product torch's own threads spin for
    milliseconds while they wait for the next, and keep a core from the threads that have work.
    """
    before = torch.get_num_threads()
    token = _n_threads.set(n_threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _n_threads.reset(token)


def n_threads() -> int:
    """How many threads :func:`map_in_threads` uses."""
    return _n_threads.get() or torch.get_num_threads()


@cache
def _pool(n: int) -> ThreadPoolExecutor:
    """Threads that stay: the first matrix product in a new thread is slow."""
    return ThreadPoolExecutor(n)


if hasattr(os, "register_at_fork"):  # a forked process has the pool, but not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
