"""One command for everything, which imports only what it is asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import dlcf
from dlcf.cli import COMMANDS, main


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: dlcf ")
    for name, (_, summary) in COMMANDS.items():
        assert f"\n    {name}" in shown and summary.split()[0] in shown


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"dlcf {dlcf.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: dlcf {command} ")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["--fast"], ["--fast", "run"]])
def test_what_is_no_command_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "dlcf: error:" in capsys.readouterr().err


def test_a_command_gets_what_stands_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    module = import_module(COMMANDS["run"][0])
    monkeypatch.setattr(module, "main", lambda arguments: seen.append(list(arguments)) or 3)
    assert main(["run", "01_eda", "-p", "SEED", "1", "--keep"]) == 3
    monkeypatch.setattr(module, "main", lambda arguments: None)
    assert main(["run"]) == 0
    assert seen == [["01_eda", "-p", "SEED", "1", "--keep"]]


@pytest.mark.parametrize("module", [["dlcf", "run"], ["dlcf.run"]])
def test_modules_can_be_run(module: list[str]) -> None:
    command = [sys.executable, "-m", *module, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: dlcf run ")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from dlcf.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
