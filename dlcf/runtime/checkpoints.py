"""Checkpoints of training: a run that was killed goes on where it was, and ends with the same bits.

Inside :func:`checkpoints` every training keeps its state in a folder of its own, which is named
after what is trained: network, settings and ratings. Another run of the same training finds it
there; any other does not. A checkpoint is a folder that appears whole, by renaming, once its files
are on disk; it carries a checksum, and what does not match it is not loaded: the one before is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from dlcf.runtime.distributed import is_first

__all__ = ["Checkpoint", "checkpoints", "fingerprint", "keeping_checkpoints"]

Result = TypeVar("Result")

TENSORS, DESCRIPTION = "state.safetensors", "state.json"
KEPT = 2


@dataclass(frozen=True)
class _Place:
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
    if place is None:
        return function(*arguments)
    with checkpoints(place.folder, place.seconds, place.steps):
        return function(*arguments)


class Checkpoint:
    """The checkpoints of one training; inactive outside of :func:`checkpoints`.

    The first process writes them, all may read.

    Parameters
    ----------
    network, data, settings
        What is trained, for :func:`fingerprint`.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Sequence[Sequence[Tensor] | None],
        settings: Any,
    ) -> None:
        self._place = _place.get()
        self._number = 0
        self._saved_at = time.monotonic()
        if self._place is not None:
            self.folder = self._place.folder / fingerprint(network, data, settings)

    def load(self) -> Any | None:
        """The newest state that is whole; None where there is none."""
        if self._place is None:
            return None
        for path in reversed(self._all()):
            self._number = max(self._number, int(path.name))
            state = _read(path)
            if state is not None:
                return state
            warnings.warn(f"{path} is damaged and was not loaded", stacklevel=2)
        return None

    def due(self, step: int) -> bool:
        """Whether it is time to save after this many steps."""
        if self._place is None:
            return False
        seconds, steps = self._place.seconds, self._place.steps
        late = time.monotonic() - self._saved_at >= seconds
        return late or (steps is not None and step % steps == 0)

    def save(self, state: Any) -> None:
        """Write `state`: dicts, lists, tensors, numbers and texts, nested in any way."""
        if self._place is None or not is_first():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(".*"):  # what a killed process was writing
            shutil.rmtree(path)
        self._number += 1
        _write(self.folder / f"{self._number:08d}", state)
        for path in self._all()[:-KEPT]:
            shutil.rmtree(path)
        self._saved_at = time.monotonic()

    def _all(self) -> list[Path]:
        """Oldest first; what a killed process left half-written has another kind of name."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.name.isdecimal())


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
    tensors = list(network.state_dict().values())
    for batch in data:
        tensors += batch or ()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().ravel().view(torch.uint8).numpy().tobytes()


def _write(path: Path, state: Any) -> None:
    tensors: dict[str, Tensor] = {}
    content = json.dumps(_pack(state, tensors))
    blob = save(tensors)
    description = json.dumps({"sha256": _checksum(blob, content), "state": content})
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=path.parent))
    try:
        for name, text in ((TENSORS, blob), (DESCRIPTION, description.encode())):
            with open(temporary / name, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(path: Path) -> Any | None:
    """The state, or None where the files are missing, cut off or altered."""
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        blob = (path / TENSORS).read_bytes()
        if description["sha256"] != _checksum(blob, description["state"]):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _unpack(json.loads(description["state"]), load(blob))


def _checksum(blob: bytes, content: str) -> str:
    return hashlib.sha256(hashlib.sha256(blob).digest() + content.encode()).hexdigest()


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; its tensors are put aside, each under a number."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):  # pairs, because keys need not be texts
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_pack(item, tensors) for item in value]
    return value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {key: _unpack(item, tensors) for key, item in value["dict"]}
    return value
