"""Training from the command line: what is given is checked before anything is fitted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from dlcf.registry import load_model, make
from dlcf.runtime.paths import ROOT
from dlcf.splits import split
from dlcf.studies import train


@pytest.fixture(autouse=True)
def toy_data(
    toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "load_ratings", lambda _: toy_ratings)
    monkeypatch.setattr(train, "load_movies", lambda _: toy_movies)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "foo=1"], "mf has no hyper-parameter 'foo'"),
        (["--set", "epochs=0"], "epochs is 0; give a whole number of at least 1"),
        (["--set", "epochs=many"], "epochs is 'many'; give a whole number of at least 1"),
        (["--set", "device=abacus"], "device is 'abacus'; give"),
        (["--seed", "-1"], "seed is -1; give a whole number of at least 0"),
        (["--split", "nope"], "invalid choice: 'nope'"),
    ],
)
def test_a_wrong_value_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        train.main(["mf", "--output", str(tmp_path / "m"), *arguments])
    assert end.value.code == 2 and not list(tmp_path.iterdir())
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_checkpoints_need_a_folder_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for inside in ("other/../m", "m/ckpt", "m/a/b"):
        given = ["--output", str(tmp_path / "m"), "--checkpoints", str(tmp_path / inside)]
        with pytest.raises(SystemExit) as end:
            train.main(["mf", *given])
        assert end.value.code == 2 and not list(tmp_path.iterdir())
        assert "give each a folder of its own" in capsys.readouterr().err.splitlines()[-1]


def test_paths_may_begin_with_a_tilde_and_are_never_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train.main(["mf", "--output", "~/m", "--checkpoints", "~/c", "--set", "epochs=1"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"m", "c"}
    capsys.readouterr()
    for option in ("--output", "--checkpoints"):
        with pytest.raises(SystemExit) as end:
            train.main(["mf", "--output", str(tmp_path / "n"), option, ""])
        assert end.value.code == 2
        assert f"argument {option}: invalid path" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_cannot_take_the_model_is_refused_before_it_is_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    problems = {".": "holds notes.txt", "notes.txt": "is a file", "notes.txt/m": "below a file"}
    for output, problem in (problems | {"notes.txt/a/m": "below a file"}).items():
        given = ["--output", str(tmp_path / output), "--checkpoints", str(tmp_path.with_name("c"))]
        with pytest.raises(SystemExit) as end:
            train.main(["mf", *given])
        assert end.value.code == 2 and [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
        assert problem in capsys.readouterr().err.splitlines()[-1]


def started(folder: Path, toy: pd.DataFrame, movies: pd.DataFrame, epochs: int) -> Any:
    """``dlcf train`` in a process of its own, away from any terminal."""
    source = folder / "data"
    source.mkdir(exist_ok=True)
    toy.to_csv(source / "ratings.csv", index=False)
    genres = movies["genres"].str.join("|")
    movies.assign(genres=genres).to_csv(source / "movies.csv", index=False)
    command = [sys.executable, "-m", "dlcf", "train", "deepcf", "--dataset", str(source)]
    command += ["--output", str(folder / "m"), "--set", f"epochs={epochs}"]
    command += ["--set", "hidden=(8,)", "--set", "dropout=(0.1,)", "--set", "batch_size=256"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        env=environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_away_from_a_terminal_each_epoch_is_a_line_and_ctrl_c_is_one(
    tmp_path: Path, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    epochs = 60
    first = started(tmp_path, toy_ratings, toy_movies, epochs)
    lines = [first.stderr.readline() for _ in range(3)]
    losses = r"train loss \d\.\d{4}, validation loss \d\.\d{4}"
    for epoch, line in enumerate(lines, 1):
        assert re.fullmatch(rf"epoch {epoch} of {epochs}: {losses}, \d+\.\d s\n", line)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert (first.returncode, out) == (130, "")
    *more, _, last = err.splitlines()
    assert last == "dlcf train: interrupted; the same command goes on from there"
    assert all(line.startswith("epoch ") for line in more)

    second = started(tmp_path, toy_ratings, toy_movies, epochs)
    out, err = second.communicate(timeout=600)
    assert second.returncode == 0 and "test RMSE" in out
    head, *rest = err.splitlines()
    done = re.fullmatch(rf"from a checkpoint: (\d+) of {epochs} epochs are done", head)
    assert done and 3 <= int(done[1]) < epochs and rest[-1].startswith(f"epoch {epochs} of")
    assert len(rest) == epochs - int(done[1])


def test_a_fit_says_nothing_by_itself(
    toy_ratings: pd.DataFrame, capfd: pytest.CaptureFixture[str]
) -> None:
    make("mf", epochs=2, seed=0).fit(toy_ratings)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("given", "how", "seeds"),
    [
        (["--set", "seed=3"], "random", (0, 3)),
        (["--seed", "2"], "random", (2, 2)),
        (["--seed", "2", "--split", "user-temporal"], "user-temporal", (2, 2)),
    ],
)
def test_a_model_is_fitted_and_saved(
    given: list[str],
    how: str,
    seeds: tuple[int, int],
    tmp_path: Path,
    toy_ratings: pd.DataFrame,
    toy_movies: pd.DataFrame,
) -> None:
    output = ["--output", str(tmp_path / "m")]
    assert train.main(["mf", *output, "--set", "epochs=1", *given]) == 0
    ours, test = split(toy_ratings, how, seed=seeds[0])
    expected = make("mf", epochs=1, seed=seeds[1]).fit(ours, movies=toy_movies).predict(test)
    assert np.array_equal(load_model(tmp_path / "m").predict(test), expected)


@pytest.mark.parametrize("given", [None, "2"])
def test_torch_and_numpy_have_the_same_threads(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given:
        monkeypatch.setenv("DLCF_THREADS", given)
    before = torch.get_num_threads()
    try:
        with threadpool_limits(None):  # gives back what there was
            train.set_default_threads()
            assert torch.get_num_threads() == int(given or 1)
            numpy = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
            assert numpy and {pool["num_threads"] for pool in numpy} == {int(given or 1)}
    finally:
        torch.set_num_threads(before)
