"""No test of this room reaches beyond this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from dlcf.data import archives
from dlcf.runtime import paths


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout of its own, without data, and with nobody to ask."""
    monkeypatch.delenv("DLCF_DATA_DIR", raising=False)
    monkeypatch.setattr(paths, "ROOT", tmp_path / "checkout")
    monkeypatch.setattr(paths, "DATA", tmp_path / "checkout" / "data")
    monkeypatch.setattr(archives, "GROUPLENS", "http://127.0.0.1:9/")  # the discard port: refused

    def no_pip(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "noise\nERROR: No matching distribution")

    monkeypatch.setattr(subprocess, "run", no_pip)
    monkeypatch.setattr("time.sleep", lambda _: None)
