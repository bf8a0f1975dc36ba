"""Several computations at a time, each on one thread: the way to use all cores for many small ones.

Where a matrix product is split over threads, all of them wait for the last, thousands of times a
second; whole computations side by side wait once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

import torch

__all__ = ["map_in_threads"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of each item, as many at a time as torch has threads; each computes with one.

    It must leave torch's random numbers alone, which all threads share. Where one call fails, those
    that have not begun are not made, and the first error is raised.
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1 or len(items) < 2:
        return [function(item) for item in items]

    def compute(item: Item) -> Result:
        torch.set_num_threads(1)
        return function(item)

    try:
        with ThreadPoolExecutor(min(n_threads, len(items))) as pool:
            calls = [pool.submit(copy_context().run, partial(compute, item)) for item in items]
            try:
                return [call.result() for call in calls]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(n_threads)
