"""The Parquet copy of a large file of ratings is never wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pandas as pd
import pytest

from dlcf.data import load_ratings
from dlcf.runtime import paths


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_ratings: pd.DataFrame) -> Path:
    """A data set that is large enough to be cached."""
    pytest.importorskip("pyarrow", reason='the cache needs pyarrow: pip install "dlcf[parquet]"')
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr("dlcf.data.reading.CACHED_FROM", 1)
    toy_ratings.to_csv(tmp_path / "ratings.csv", index=False)
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
        first = load_ratings(folder)
        text = (folder / "ratings.csv").read_text()
        stamp = (folder / "ratings.csv").stat()
        (folder / "ratings.csv").write_text(text.replace(",3.0,", ",3.5,", 1))
        os.utime(folder / "ratings.csv", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert (load_ratings(folder)["rating"] != first["rating"]).sum() == 1

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
