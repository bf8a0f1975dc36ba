"""The toy world as a data set, a cache of its own, and fits that take no time."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dlcf.runtime import paths


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def dataset(tmp_path: Path, toy_ratings: pd.DataFrame) -> str:
    """The toy world as a folder in MovieLens form."""
    folder = tmp_path / "toy"
    folder.mkdir()
    toy_ratings.to_csv(folder / "ratings.csv", index=False)
    return str(folder)
