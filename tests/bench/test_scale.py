"""Synthetic ratings keep the real marginals; the cache of large files is never wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dlcf
from bench.synthetic import synthetic_ratings
from dlcf import data
from dlcf.data import load_ratings
from dlcf.ratings import check_ratings, fingerprint
from dlcf.runtime import paths


@pytest.fixture(scope="module")
def world() -> pd.DataFrame:
    """Ratings of 300 users and 500 movies with long tails and five levels."""
    generator = np.random.default_rng(5)
    activity = np.maximum(20, np.sort(generator.pareto(1.5, 300) * 20).astype(int)).clip(max=150)
    weight = 1.0 / (np.arange(500) + 3.0)
    rows = [
        (user, movie)
        for user, n in enumerate(activity)
        for movie in generator.choice(500, n, replace=False, p=weight / weight.sum())
    ]
    user, movie = np.array(rows).T
    rating = generator.choice([2.0, 3.0, 4.0, 4.5, 5.0], len(user), p=[0.1, 0.2, 0.4, 0.1, 0.2])
    return pd.DataFrame({"userId": user, "movieId": movie, "rating": rating.astype(np.float32)})


class TestSynthetic:
    def test_it_holds_as_many_distinct_pairs_as_asked(self, world: pd.DataFrame) -> None:
        made = synthetic_ratings(50_000, world)
        assert len(made) == 50_000
        assert check_ratings(made, require_timestamp=True) is made
        assert not made.duplicated(["userId", "movieId"]).any()

    def test_users_are_as_active_and_levels_as_frequent(self, world: pd.DataFrame) -> None:
        made = synthetic_ratings(100_000, world, seed=1)
        real, drawn = (frame["userId"].value_counts().to_numpy() for frame in (world, made))
        assert abs(drawn.mean() / real.mean() - 1) < 0.01
        grid = np.linspace(0.02, 0.98, 25)
        np.testing.assert_allclose(np.quantile(drawn, grid), np.quantile(real, grid), rtol=0.05)
        share = made["rating"].value_counts(normalize=True).sort_index()
        np.testing.assert_allclose(
            share, world["rating"].value_counts(normalize=True).sort_index(), atol=0.01
        )

    def test_few_movies_hold_as_large_a_share(self, world: pd.DataFrame) -> None:
        made = synthetic_ratings(len(world), world, seed=2)

        def held_by_top_tenth(frame: pd.DataFrame) -> float:
            counts = frame["movieId"].value_counts().to_numpy()
            return counts[: len(counts) // 10].sum() / counts.sum()

        assert held_by_top_tenth(made) == pytest.approx(held_by_top_tenth(world), abs=0.02)

    def test_there_is_something_to_learn(self, world: pd.DataFrame) -> None:
        """Biases explain part of the variance, as they do of real ratings."""
        train, test = dlcf.split(synthetic_ratings(100_000, world, seed=3))
        error = {
            name: dlcf.evaluate(dlcf.make(name).fit(train), train, test, "rated")["rmse"]
            for name in ("global-mean", "bias")
        }
        assert error["bias"] < 0.93 * error["global-mean"]

    def test_the_seed_decides(self, world: pd.DataFrame) -> None:
        first, again, other = (fingerprint(synthetic_ratings(20_000, world, s)) for s in (4, 4, 5))
        assert first == again != other

    def test_parts_do_not_show(self, world: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bench.synthetic.RATINGS_AT_ONCE", 3_000)
        made = synthetic_ratings(20_000, world, seed=6)
        assert check_ratings(made) is made and len(made) == 20_000

    def test_too_few_are_refused(self, world: pd.DataFrame) -> None:
        with pytest.raises(ValueError, match="n_ratings is 100"):
            synthetic_ratings(100, world)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: pd.DataFrame) -> Path:
    """A data set that is large enough to be cached."""
    pytest.importorskip("pyarrow", reason='the cache needs pyarrow: pip install "dlcf[parquet]"')
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(data.reading, "CACHED_FROM", 1)
    world.assign(timestamp=1_000_000_000).to_csv(tmp_path / "ratings.csv", index=False)
    return tmp_path


def cached(folder: Path) -> list[Path]:
    return list((folder / "cache" / "ratings").glob("*"))


class TestCache:
    def test_it_gives_the_same_frame_without_reading_the_text(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = load_ratings(folder)
        assert len(cached(folder)) == 1

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the text was read again")

        monkeypatch.setattr(pd, "read_csv", refuse)
        pd.testing.assert_frame_equal(load_ratings(folder), first, check_exact=True)

    def test_another_text_is_read_anew(self, folder: Path) -> None:
        load_ratings(folder)
        text = (folder / "ratings.csv").read_text()
        stamp = (folder / "ratings.csv").stat()
        (folder / "ratings.csv").write_text(text.replace(",3.0,", ",3.5,", 1))
        os.utime(folder / "ratings.csv", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert 3.5 in load_ratings(folder)["rating"].to_numpy()

    @pytest.mark.parametrize("place", [0.02, 0.5, 0.98])
    def test_one_wrong_byte_is_enough_to_refuse_it(self, folder: Path, place: float) -> None:
        first = load_ratings(folder)
        (path,) = cached(folder)
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1
        path.write_bytes(content)
        pd.testing.assert_frame_equal(load_ratings(folder), first, check_exact=True)
        assert cached(folder) == [path] and path.read_bytes() != bytes(content)

    def test_a_wrong_file_is_refused_and_never_cached(self, folder: Path) -> None:
        with (folder / "ratings.csv").open("a") as file:
            file.write("1,1,9.0,1000000000\n")
        for _ in range(2):
            with pytest.raises(ValueError, match="off the scale"):
                load_ratings(folder)
        assert not cached(folder)

    def test_without_pyarrow_everything_works(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        assert len(load_ratings(folder)) == len(load_ratings(folder)) > 0
        assert not cached(folder)

    def test_a_cache_that_cannot_be_written_does_not_matter(self, folder: Path) -> None:
        (folder / "cache").write_text("a file, where a folder is wanted")
        assert len(load_ratings(folder)) > 0
