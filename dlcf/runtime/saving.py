"""Models on disk: a folder with `model.json` and the tensors that it names.

The tensors lie in a file that is named after their content, and `model.json`, which is replaced in
one step once they are on disk, says which and with what checksums. So a reader sees the old model
or the new one, and a run that is killed leaves the one that was there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors.numpy import load, save

from dlcf.runtime import paths
from dlcf.runtime.paths import write_atomically

DESCRIPTION = "model.json"
TENSORS, ANY_TENSORS = "model-{}.safetensors", f"model-{'[0-9a-f]' * 16}.safetensors"
DIGEST = "tensors sha256"
LOCK = ".lock"
TRIES = 20  # of reading while another process saves


def write_folder(
    folder: str | Path, arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]
) -> Path:
    """Save arrays and what describes them; a model that was there before is replaced.

    `folder` is made where it is missing; a link to a folder is followed, ``~`` is the user's home.
    ValueError where it is empty, or holds something that is no saved model: nothing is touched.
    """
    folder = folder_for_model(folder)
    blob = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    text = json.dumps(description, ensure_ascii=False)
    digest = hashlib.sha256(blob).hexdigest()
    tensors = TENSORS.format(digest[:16])
    content = {
        "tensors": tensors,
        DIGEST: digest,
        "model sha256": hashlib.sha256(text.encode()).hexdigest(),
        "model": description,
    }
    listing = json.dumps(content, indent=1, ensure_ascii=False)
    with FileLock(folder / LOCK):  # two that save here at once would remove each other's tensors
        write_atomically(folder / tensors, blob)
        write_atomically(folder / DESCRIPTION, listing)
        for path in folder.glob(ANY_TENSORS):
            if path.name != tensors:
                path.unlink(missing_ok=True)
    return folder


def read_folder(folder: str | Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays and the description that :func:`write_folder` wrote.

    FileNotFoundError where the folder holds no `model.json`, ValueError where a file is damaged: it
    is not what was written.
    """
    path = paths.path(folder) / DESCRIPTION
    if not path.is_file():
        problem = f"{path.parent} holds no {DESCRIPTION}"
        raise FileNotFoundError(f"{problem}; name a saved model's folder")
    for attempt in range(TRIES):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or "model" not in content:
                raise ValueError("it is not of this version")
            _verify(json.dumps(content["model"], ensure_ascii=False), content["model sha256"])
            blob = (path.parent / content["tensors"]).read_bytes()
            _verify(blob, content[DIGEST])
            return load(blob), content["model"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Tensors are missing where another process has saved between the two reads.
            if not isinstance(error, FileNotFoundError) or attempt == TRIES - 1:
                problem = f"{path} is of no model, or of a damaged one ({error})"
                raise ValueError(f"{problem}; fit the model and save it again") from None
    raise AssertionError("not reached")


def _is_of_something_else(description: Path) -> bool:
    """Whether it can be read and has no checksum; what cannot be read is of a damaged model."""
    try:
        return DIGEST not in json.loads(description.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _verify(content: str | bytes, sha256: str) -> None:
    content = content.encode() if isinstance(content, str) else content
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("a checksum is wrong")


def folder_for_model(folder: str | Path) -> Path:
    """The folder that :func:`write_folder` writes to; ValueError where it would refuse to."""
    if str(folder) in ("", "."):  # the same as a Path
        raise ValueError(f"{str(folder)!r} is no folder for a model; name a new one")
    folder = paths.path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the model")
    if any(above.is_file() for above in folder.parents):
        raise ValueError(f"{folder} is below a file; name a folder that can be made")
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    ours = (DESCRIPTION, ANY_TENSORS, ".*")  # hidden files: a killed run's, or the system's
    others = [name for name in names if not any(fnmatch(name, pattern) for pattern in ours)]
    if DESCRIPTION in names and _is_of_something_else(folder / DESCRIPTION):
        others.append(f"a {DESCRIPTION} of something else")
    if others:
        problem = f"{folder} holds {others[0]}, which is no part of a saved model"
        raise ValueError(f"{problem}; name an empty folder or a new one")
    return folder
