"""Training by several processes, on one machine or many, as ``torchrun`` starts them.

Every process holds all ratings and all weights, draws the same order, and works on its own part of
each batch; gradients are summed, so that all make the same step. One process is the special case in
which nothing is exchanged. ``torchrun -m dlcf train`` fits a model this way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

Values = TypeVar("Values", Tensor, NDArray[Any])


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes inside, where ``torchrun`` started this one; else do nothing."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    # Two processes cannot share a GPU in NCCL.
    cuda = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def n_processes() -> int:
    """How many processes train together; 1 outside of :func:`process_group`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def share(n: int) -> slice:
    """This process's part of `n` rows; parts differ by one row at most, and may be empty."""
    if n_processes() == 1:
        return slice(0, n)
    rank, processes = dist.get_rank(), n_processes()
    return slice(n * rank // processes, n * (rank + 1) // processes)


def sum_over_processes(values: Values) -> Values:
    """`values` with what all processes have in them added up, in place; the same bits in each."""
    if n_processes() > 1:
        dist.all_reduce(torch.as_tensor(values))  # of an array, a tensor on the same memory
    return values
