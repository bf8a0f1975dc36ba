"""Where files are read and written.

In a checkout all folders are its own, whatever the working directory. Where the package is
installed without one, data, cache and what was tuned are the user's, the rest in the working one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

from platformdirs import user_cache_path, user_data_path

_CHECKOUT = Path(__file__).resolve().parents[2]
_IN_CHECKOUT = (_CHECKOUT / "pyproject.toml").is_file()

ROOT = _CHECKOUT if _IN_CHECKOUT else Path.cwd()
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"
RESULTS = ROOT / "results"
RUNS = ROOT / "runs"
DATA = ROOT / "data" if _IN_CHECKOUT else user_data_path("dlcf")
TUNED = RESULTS / "tuned" if _IN_CHECKOUT else user_data_path("dlcf") / "tuned"
_CACHE = ROOT / ".cache" if _IN_CHECKOUT else user_cache_path("dlcf")
CACHE = Path(os.path.expanduser(os.environ.get("DLCF_CACHE_DIR") or _CACHE))


def path(given: str | Path) -> Path:
    """What a user gave as a path: ``~`` is the home, and ValueError for no text at all."""
    if not str(given).strip():
        raise ValueError("a path is empty; name a folder or a file")
    return Path(os.path.expanduser(given))


def file_name(text: str) -> str:
    """`text` as the name of a file: another text has another name."""
    name = re.sub(r"[^\w=.+-]", "_", text)[:200]
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return name if name == text else f"{name}-{digest}"


def write_atomically(path: Path, *content: bytes | memoryview | str) -> Path:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part.

    The folder is made where it is missing; parts of `content` follow each other, text as UTF-8.
    Returns `path` itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with temporary.open("wb") as file:
            file.writelines(part.encode() if isinstance(part, str) else part for part in content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write `content` atomically; a list of numbers takes one line, so that diffs can be read."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    text = re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)
    return write_atomically(path, text + "\n")
