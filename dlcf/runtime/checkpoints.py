"""Checkpoints of training: a run that was killed goes on where it was, and ends with the same bits.

Inside :func:`checkpoints` every training keeps its state in a folder of its own, which is named
after what is trained: network, settings and ratings. Another run of the same training finds it
there; any other does not. A checkpoint is a file that appears whole, by renaming, once it is on
disk: a SHA-256 checksum, then what ``torch.save`` wrote. What does not match its checksum is not
loaded, but the checkpoint before.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dlcf.runtime.distributed import is_first

__all__ = ["Checkpoint", "checkpoints", "fingerprint", "keeping_checkpoints"]

Result = TypeVar("Result")

KEPT = 2
DIGEST = hashlib.sha256().digest_size


class _Place(NamedTuple):
    folder: Path
    seconds: float
    steps: int | None


_place: ContextVar[_Place | None] = ContextVar("checkpoints", default=None)


@contextmanager
def checkpoints(
    folder: str | Path, seconds: float = 60.0, steps: int | None = None
) -> Iterator[None]:
    """Keep checkpoints of all training inside, and go on from those that are there.

    They are written after each epoch, after each `steps` steps, and where `seconds` have passed
    since the last. They do not change what is learned.

    Parameters
    ----------
    folder
        Made where it is missing. A training that is complete leaves its last two checkpoints, so
        that doing it again is done at once; delete the folder when it is no longer wanted.
    seconds, steps
        The longest stretch of training that may be lost; None sets no limit on steps.
    """
    token = _place.set(_Place(Path(folder), seconds, steps))
    try:
        yield
    finally:
        _place.reset(token)


def keeping_checkpoints(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function`, to be called in another process, with the checkpoints that are kept in this."""
    return partial(_keeping, _place.get(), function)


def _keeping(place: _Place | None, function: Callable[..., Result], *arguments: Any) -> Result:
    with checkpoints(*place) if place else nullcontext():
        return function(*arguments)


class Checkpoint:
    """The checkpoints of one training; inactive outside of :func:`checkpoints`.

    The first process writes them, all may read. The parameters are those of :func:`fingerprint`.
    """

    def __init__(
        self, network: nn.Module, data: Sequence[Sequence[Tensor] | None], settings: Any
    ) -> None:
        self._place = _place.get()
        self._number = 0
        self._saved_at = time.monotonic()
        if self._place is not None:
            self.folder = self._place.folder / fingerprint(network, data, settings)

    def load(self) -> Any | None:
        """The newest state that is whole, tensors on the CPU; None where there is none."""
        if self._place is None:
            return None
        for path in reversed(self._all()):
            self._number = max(self._number, int(path.stem))
            state = _read(path)
            if state is not None:
                return state
            warnings.warn(f"{path} is damaged and was not loaded", stacklevel=2)
        return None

    def due(self, step: int) -> bool:
        """Whether it is time to save after this many steps."""
        if self._place is None:
            return False
        _, seconds, steps = self._place
        late = time.monotonic() - self._saved_at >= seconds
        return late or (steps is not None and step % steps == 0)

    def save(self, state: Any) -> None:
        """Write `state`: dicts, lists, tensors, numbers and texts, nested in any way."""
        if self._place is None or not is_first():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(".*.pt"):  # what a killed process was writing
            path.unlink()
        self._number += 1
        _write(self.folder / f"{self._number:08d}.pt", state)
        for path in self._all()[:-KEPT]:
            path.unlink()
        self._saved_at = time.monotonic()

    def _all(self) -> list[Path]:
        """Oldest first; what is still being written has a name that begins with a dot."""
        return sorted(path for path in self.folder.glob("*.pt") if path.stem.isdecimal())


def fingerprint(network: nn.Module, data: Sequence[Sequence[Tensor] | None], settings: Any) -> str:
    """What is trained, as 16 hexadecimal digits.

    Parameters
    ----------
    network
        Before training: modules, plain attributes and initial weights count.
    data
        Ratings to train and to validate on.
    settings
        Anything whose ``repr`` tells all.
    """
    digest = hashlib.sha256(repr(settings).encode())
    plain = {k: v for k, v in vars(network).items() if isinstance(v, (int, float, str, tuple))}
    plain.pop("training", None)
    digest.update(f"{network}{sorted(plain.items())}".encode())
    for tensor in (*network.state_dict().values(), *(t for batch in data for t in batch or ())):
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        content = tensor.detach().cpu().contiguous().ravel().view(torch.uint8)
        digest.update(content.numpy().tobytes())
    return digest.hexdigest()[:16]


def _write(path: Path, state: Any) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "wb") as file:
        file.write(hashlib.sha256(buffer.getbuffer()).digest())
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read(path: Path) -> Any | None:
    """The state, or None where the file is cut off, altered or cannot be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, saved = content[:DIGEST], content[DIGEST:]
    if hashlib.sha256(saved).digest() != digest:
        return None
    return torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
