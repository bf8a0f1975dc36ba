"""The repository's folders, whatever the working directory."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

__all__ = [
    "CACHE",
    "DATA",
    "FIGURES",
    "NOTEBOOKS",
    "RESULTS",
    "ROOT",
    "RUNS",
    "write_atomically",
    "write_json",
]


def _find_root() -> Path:
    """The checkout that holds this package; the working directory where it was installed alone."""
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


ROOT = _find_root()
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"
RESULTS = ROOT / "results"
DATA = ROOT / "data"
RUNS = ROOT / "runs"
CACHE = Path(os.environ.get("DLCF_CACHE_DIR", ROOT / ".cache"))


def write_atomically(path: Path, content: bytes | str) -> Path:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part.

    Parameters
    ----------
    path
        The file to write; its folder is made where it is missing.
    content
        Text is written as UTF-8.

    Returns
    -------
    Path
        `path` itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write `content` atomically; a list of numbers takes one line, so that diffs can be read."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    text = re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)
    return write_atomically(path, text + "\n")
