"""One command for everything, which imports only what it is asked for."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

import dlcf
from dlcf.cli import COMMANDS, main
from dlcf.data import DataUnavailableError


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
    said = capsys.readouterr().out
    assert said.startswith(f"usage: dlcf {command} ") and said.isascii()


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


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(import_module(COMMANDS["compare"][0]), "main", fail)


@pytest.mark.parametrize(
    "error",
    [ValueError("seed is -1"), DataUnavailableError("no network"), OSError(28, "No space left")],
)
def test_an_error_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(error, monkeypatch)
    assert main(["compare"]) == 1
    assert capsys.readouterr() == ("", f"dlcf compare: error: {error}\n")


def test_a_missing_package_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(ModuleNotFoundError("No module named 'nbformat'"), monkeypatch)
    assert main(["compare"]) == 1
    remedy = "No module named 'nbformat'; pip install \"dlcf[notebooks]\"\n"
    assert capsys.readouterr().err == f"dlcf compare: error: {remedy}"


def test_what_nobody_foresaw_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(AttributeError("a bug"), monkeypatch)
    with pytest.raises(AttributeError):
        main(["compare"])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_needs_no_certain_encoding(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    said = "0.844 ± 0.005, – and Амели"
    monkeypatch.setattr(import_module(COMMANDS["run"][0]), "main", lambda _: print(said))
    assert main(["run"]) == 0
    sys.stdout.flush()
    assert written.getvalue().decode(encoding).startswith("0.844 ")


def hear_ctrl_c() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def alive(group: int) -> list[str]:
    """Names of the processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = path.read_text().partition(") ")
            state, _, of_group, *_ = rest.split()
            found += [name] if int(of_group) == group and state != "Z" else []
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes in /proc")
@pytest.mark.parametrize("command", [["compare", "--models", "deepcf"], ["ablation"]])
def test_ctrl_c_ends_all_processes_in_one_line(
    command: list[str], tmp_path: Path, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    more = [toy_ratings.assign(userId=toy_ratings["userId"] + 1000 * i) for i in range(20)]
    pd.concat(more).to_csv(tmp_path / "ratings.csv", index=False)
    movies = toy_movies.assign(genres=toy_movies["genres"].str.join("|"))
    movies.to_csv(tmp_path / "movies.csv", index=False)
    program = [sys.executable, "-m", "dlcf", *command, "--dataset", str(tmp_path), "--workers", "2"]
    environment = {**os.environ, "DLCF_CACHE_DIR": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [*program, "--output", str(tmp_path / "found.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    deadline = time.monotonic() + 300
    while len(alive(process.pid)) < 4:  # itself, two that fit, and one that watches them
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(10)  # until they fit: a worker that is only starting can swallow the signal
    said = ""
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            said, _ = process.communicate(timeout=60)
            break
    assert process.returncode == 130
    name = command[0]
    assert said == f"\ndlcf {name}: interrupted; the same command goes on from there\n"
    while alive(process.pid):
        assert time.monotonic() < deadline, alive(process.pid)
        time.sleep(0.2)
    assert not (tmp_path / "found.json").exists()


@pytest.mark.parametrize("notebooks", [["04_evaluation"], ["03_deep_cf", "04_evaluation"]])
def test_ctrl_c_ends_a_run_of_notebooks_in_one_line(notebooks: list[str], tmp_path: Path) -> None:
    program = [sys.executable, "-u", "-m", "dlcf", "run", *notebooks]
    folders = {name: str(tmp_path) for name in ("DLCF_OUTPUT_DIR", "DLCF_CACHE_DIR")}
    process = subprocess.Popen(
        [*program, "--output", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **folders},
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    begun = {process.stdout.readline() for _ in notebooks}
    assert begun == {f"{name} ...\n" for name in notebooks}
    time.sleep(5)  # until a kernel runs
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    last = "dlcf run: interrupted; the same command goes on from there"
    assert said.splitlines()[-1] == last and "Traceback" not in said
    assert not list(tmp_path.glob("figures/*"))
