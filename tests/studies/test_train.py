"""Training from the command line: what is given is checked before anything is fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dlcf.registry import load_model, make
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
    same = str(tmp_path / "m"), str(tmp_path / "other" / ".." / "m")
    with pytest.raises(SystemExit) as end:
        train.main(["mf", "--output", same[0], "--checkpoints", same[1]])
    assert end.value.code == 2 and not list(tmp_path.iterdir())
    assert "give each a folder of its own" in capsys.readouterr().err.splitlines()[-1]


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
