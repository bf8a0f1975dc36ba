"""What numbers and times depend on besides the code: processor, libraries, commit."""

from __future__ import annotations

import platform
import subprocess
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dlcf.runtime import paths


def processor_name() -> str:
    """The processor's model, or its architecture where the system does not tell more."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def library_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Distribution name -> installed version, None where it is not installed."""
    found: dict[str, str | None] = dict.fromkeys(names)
    for name in found:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextmanager
def optional(library: str, done: str, extra: str = "baselines") -> Iterator[None]:
    """Around the import of a library, with which something, such as "ials is fitted", is `done`.

    Where it is missing, ImportError says which of dlcf's extras to install.
    """
    try:
        with warnings.catch_warnings():
            # myfm imports pkg_resources, which warns of its own end.
            warnings.filterwarnings("ignore", message="pkg_resources", category=UserWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    except ImportError as error:
        remedy = f'{done} with {library}: pip install "dlcf[{extra}]"'
        raise ImportError(f"{remedy} (importing it failed with: {error})") from error


def git_state() -> dict[str, Any]:
    """``commit`` (None outside a checkout), and whether `dlcf/` has ``uncommitted changes``."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted changes": bool(_git("status", "--porcelain", "--", "dlcf")),
    }


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(paths.ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
