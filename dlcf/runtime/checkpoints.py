"""Checkpoints of training: a run that was killed goes on where it was, and ends with the same bits.

Inside :func:`checkpoints` every training keeps its state in a folder of its own, which is named
after what is trained: network, settings and ratings. Another run of the same training finds it
there; any other does not, and one at the same time is refused. A checkpoint is a file that appears
whole: a SHA-256 checksum, then what ``torch.save`` wrote. What does not match its checksum is not
loaded, but the checkpoint before. Other files in the folder are left alone.
"""

from __future__ import annotations

import hashlib
import io
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from dlcf.runtime import paths
from dlcf.runtime.distributed import is_first

Result = TypeVar("Result")

KEPT = 2
DIGEST = hashlib.sha256().digest_size
SAVED = "[0-9]" * 8 + ".pt"
UNFINISHED = f".{SAVED}.{'[0-9a-f]' * 32}.part"  # what a killed process was writing


class _Place(NamedTuple):
    folder: Path
    seconds: float
    steps: int | None
    locks: ExitStack


_place: ContextVar[_Place | None] = ContextVar("checkpoints", default=None)


@contextmanager
def checkpoints(
    folder: str | Path, seconds: float = 60.0, steps: int | None = None
) -> Iterator[None]:
    """Keep checkpoints of all training inside, and go on from those that are there.

    They are written after each epoch, after each `steps` steps, and where `seconds` have passed
    since the last: the longest stretch of training that may be lost; None sets no limit on steps.
    They do not change what is learned. `folder` is made where it is missing. A training that is
    complete leaves its last two checkpoints, so that doing it again is done at once; delete the
    folder when it is no longer wanted.

    RuntimeError where another process trains the same, with its checkpoints in the same folder.
    What is trained inside is locked to the end of the block; the lock of a killed process is free.
    """
    with ExitStack() as locks:
        token = _place.set(_Place(paths.path(folder), seconds, steps, locks))
        locks.callback(_place.reset, token)
        yield


def keeping_checkpoints(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function`, to be called in another process, with the checkpoints that are kept in this."""
    place = _place.get()
    return partial(_keeping, place and place[:3], function)


def _keeping(
    settings: tuple[Path, float, int | None] | None,
    function: Callable[..., Result],
    *arguments: Any,
) -> Result:
    with checkpoints(*settings) if settings else nullcontext():
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
            if is_first():
                # One object for all trainings of this process, which may follow each other.
                lock = FileLock(self.folder / ".lock", timeout=0, is_singleton=True)
                try:
                    self._place.locks.enter_context(lock)
                except Timeout:
                    problem = f"another process trains this: {self.folder} is locked"
                    remedy = "wait until it is done, or name another folder for checkpoints"
                    raise RuntimeError(f"{problem}; {remedy}") from None

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
        late = time.monotonic() - self._saved_at >= self._place.seconds
        return late or (self._place.steps is not None and step % self._place.steps == 0)

    def save(self, state: Any) -> None:
        """Write `state`: dicts, lists, tensors, numbers and texts, nested in any way."""
        if self._place is None or not is_first():
            return
        self._number += 1
        buffer = io.BytesIO()
        torch.save(state, buffer)
        saved = buffer.getbuffer()
        digest = hashlib.sha256(saved).digest()
        paths.write_atomically(self.folder / f"{self._number:08d}.pt", digest, saved)
        for path in (*self.folder.glob(UNFINISHED), *self._all()[:-KEPT]):
            with suppress(OSError):  # it may be a folder
                path.unlink()
        self._saved_at = time.monotonic()

    def _all(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob(SAVED))


def fingerprint(network: nn.Module, data: Sequence[Sequence[Tensor] | None], settings: Any) -> str:
    """What is trained, as 16 hexadecimal digits.

    Of the network, before training, modules, plain attributes and initial weights count; `data` are
    ratings to train and to validate on, `settings` is anything whose ``repr`` tells all.
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
