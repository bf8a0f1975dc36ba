"""What `make setup` makes, keeps and refuses; its interpreters are stand-ins of any version."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dlcf.runtime import paths

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
STAND_IN = """#!{python}
import pathlib, shutil, sys

sys.version_info = (3, {minor}, 1, "final", 0)
sys.modules["pip"] = {pip}
if sys.argv[1] == "-c":
    exec(sys.argv[2])
elif sys.argv[2] == "venv":
    folder = pathlib.Path(sys.argv[-1])
    if "--clear" in sys.argv:
        shutil.rmtree(folder, ignore_errors=True)
    (folder / "bin").mkdir(parents=True)
    shutil.copy(__file__, folder / "bin" / "python")
else:
    with open("calls", "a") as calls:
        print(sys.version_info[1], *sys.argv[1:], file=calls)
    sys.exit(pathlib.Path("offline").exists())
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(paths.ROOT / name, tmp_path)
    return tmp_path


def interpreter(path: Path, minor: int, pip: bool = True) -> Path:
    path.unlink(missing_ok=True)
    path.write_text(STAND_IN.format(python=sys.executable, minor=minor, pip=pip or None))
    path.chmod(0o755)
    return path


def setup(project: Path, python: Path, given: bool = True) -> subprocess.CompletedProcess[str]:
    """`make setup`, with `python` named as PYTHON or only found as python3."""
    named = [f"PYTHON={python}"] if given else []
    commands = project / "commands"
    commands.mkdir(exist_ok=True)
    shutil.copy(python, commands / "python3")
    return subprocess.run(
        ["make", "setup", *named],
        cwd=project,
        env={"PATH": f"{commands}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


def installs(project: Path) -> list[str]:
    """For each call of pip the minor version of Python that made it."""
    calls = project / "calls"
    return [line.split()[0] for line in calls.read_text().splitlines()] if calls.exists() else []


def installed(project: Path, minor: int = 12) -> Path:
    """A whole environment with a leftover, which is there until it is made anew."""
    assert setup(project, interpreter(project / "python", minor)).returncode == 0
    (project / "calls").unlink()
    leftover = project / ".venv" / "leftover"
    leftover.touch()
    return leftover


def change_lock(project: Path) -> None:
    later = (project / ".venv" / "installed").stat().st_mtime + 5
    os.utime(project / "requirements.lock", (later, later))


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("minor", [10, 15])
def test_a_python_that_is_not_supported_is_refused_in_a_line(
    project: Path, minor: int, given: bool
) -> None:
    done = setup(project, interpreter(project / "python", minor), given)
    assert done.returncode != 0 and not (project / ".venv").exists() and not installs(project)
    (line,) = (done.stdout + done.stderr).splitlines()
    assert f"is Python 3.{minor}; supported are 3.11 3.12 3.13 3.14" in line


def test_a_python_that_does_not_run_is_refused_in_a_line(project: Path) -> None:
    broken = project / "python"
    broken.write_text("#!/bin/sh\nexit 127\n")
    done = setup(project, broken)
    assert done.returncode != 0 and not (project / ".venv").exists()
    (line,) = (done.stdout + done.stderr).splitlines()
    assert "no Python that runs; supported are 3.11" in line


def test_a_whole_environment_is_kept_whatever_python3_is(project: Path) -> None:
    leftover = installed(project)
    assert setup(project, interpreter(project / "python", 10), given=False).returncode == 0
    assert setup(project, interpreter(project / "python", 12)).returncode == 0
    assert leftover.exists() and not installs(project)


def test_another_lock_is_installed_into_it(project: Path) -> None:
    leftover = installed(project)
    change_lock(project)
    assert setup(project, interpreter(project / "python", 10), given=False).returncode == 0
    assert leftover.exists() and set(installs(project)) == {"12"}


@pytest.mark.parametrize("damage", ["interrupted", "no pip", "python went", "other python"])
def test_what_is_not_whole_is_made_anew(project: Path, damage: str) -> None:
    leftover, minor = installed(project), 12
    python = project / ".venv" / "bin" / "python"
    if damage == "interrupted":
        (project / ".venv" / "installed").unlink()
    elif damage == "no pip":
        interpreter(python, minor, pip=False)
    elif damage == "python went":
        python.unlink()
        python.symlink_to(project / "gone")
    else:
        minor = 13
    done = setup(project, interpreter(project / "python", minor))
    assert done.returncode == 0, done.stderr
    assert not leftover.exists() and set(installs(project)) == {str(minor)}
    assert (project / ".venv" / "installed").exists()


def test_an_installation_that_fails_does_not_pass_for_whole(project: Path) -> None:
    leftover = installed(project)
    change_lock(project)
    (project / "offline").touch()
    assert setup(project, project / "python").returncode != 0
    assert not (project / ".venv" / "installed").exists()
    (project / "offline").unlink()
    assert setup(project, project / "python").returncode == 0
    assert (project / ".venv" / "installed").exists() and not leftover.exists()
