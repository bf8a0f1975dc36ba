"""A folder of arrays and their description, as models are saved: it appears whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

__all__ = ["read_folder", "write_folder"]

TENSORS, DESCRIPTION = "model.safetensors", "model.json"


def write_folder(
    folder: str | Path, arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]
) -> Path:
    """Write `model.safetensors` and `model.json`; what was there before is replaced at the end."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        save_file(contiguous, temporary / TENSORS)
        text = json.dumps(description, indent=1, ensure_ascii=False)
        (temporary / DESCRIPTION).write_text(text, encoding="utf-8")
        if folder.exists():
            replaced = temporary.with_name(temporary.name + "-old")
            folder.rename(replaced)
            temporary.rename(folder)
            shutil.rmtree(replaced)
        else:
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def read_folder(folder: str | Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays and the description that :func:`write_folder` wrote.

    Raises
    ------
    FileNotFoundError
        The folder holds no `model.json`.
    """
    folder = Path(folder)
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    return load_file(folder / TENSORS), description
