"""What a record says about the computer and the code that made it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from dlcf.runtime import environment, paths


def test_versions_are_those_installed() -> None:
    found = environment.library_versions(["numpy", "a-library-that-is-not-there"])
    assert found == {"numpy": np.__version__, "a-library-that-is-not-there": None}


def test_the_processor_has_a_name() -> None:
    assert environment.processor_name().strip()


def test_the_state_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_state() == {"commit": None, "uncommitted changes": False}

    def git(*arguments: str) -> None:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *settings, *arguments], check=True)

    (tmp_path / "dlcf").mkdir()
    (tmp_path / "dlcf" / "code.py").write_text("")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    clean = environment.git_state()
    assert len(clean["commit"]) == 40 and clean["uncommitted changes"] is False
    (tmp_path / "notes").write_text("outside of the package")
    assert environment.git_state() == clean
    (tmp_path / "dlcf" / "code.py").write_text("changed")
    assert environment.git_state() == {**clean, "uncommitted changes": True}
