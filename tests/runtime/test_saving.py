"""Models on disk: what was there is never lost, and what is damaged is never loaded."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlcf.runtime import saving
from dlcf.runtime.saving import read_folder, write_folder


def arrays(value: float, n: int = 50) -> dict[str, Any]:
    return {"weights": np.full(n, value), "ids": np.arange(n)}


def written(value: float, folder: Path) -> Path:
    return write_folder(folder, arrays(value), {"value": value, "title": "Léon “x”"})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    found, description = read_folder(written(2.5, tmp_path / "a" / "m"))
    assert np.array_equal(found["weights"], np.full(50, 2.5))
    assert description == {"value": 2.5, "title": "Léon “x”"}


def test_another_model_takes_its_place(tmp_path: Path) -> None:
    folder = written(1.0, tmp_path / "m")
    written(2.0, folder)
    assert read_folder(folder)[1]["value"] == 2.0
    assert len(list(folder.glob("[!.]*"))) == 2


def test_a_folder_of_somebody_else_is_refused_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"holds thesis\.tex, which is no part"):
            written(1.0, folder)
    assert (folder / "thesis.tex").read_text() == "years"
    assert os.listdir(folder) == ["thesis.tex"]


def test_the_files_of_another_program_are_kept(tmp_path: Path) -> None:
    """Also where they are called like ours."""
    for name, content in (("model.json", '{"keras": 2}'), ("model-final.safetensors", "weeks")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match="name an empty folder"):
            written(1.0, tmp_path)
        assert (tmp_path / name).read_text() == content
        (tmp_path / name).unlink()


def test_beside_a_model_too(tmp_path: Path) -> None:
    folder = written(1.0, tmp_path / "m")
    (folder / "notes").mkdir()
    with pytest.raises(ValueError, match="holds notes"):
        written(2.0, folder)
    assert read_folder(folder)[1]["value"] == 1.0


def test_a_file_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        written(1.0, tmp_path / "m")
    assert (tmp_path / "m").read_text() == "mine"


@pytest.mark.parametrize("empty", ["", "."])
def test_an_empty_path_is_refused(empty: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no folder for a model"):
        write_folder(empty, arrays(1.0), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_path_holds_no_model(empty: str, tmp_path: Path, monkeypatch: Any) -> None:
    written(1.0, tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a path is empty"):
        read_folder(empty)


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    written(1.0, tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    written(2.0, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert read_folder(tmp_path / "real")[1]["value"] == 2.0


def test_the_users_home_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(1.0, Path("~/m"))
    assert read_folder(tmp_path / "m")[1]["value"] == read_folder("~/m")[1]["value"] == 1.0


def test_files_have_the_users_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = written(1.0, tmp_path / "m")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("model*")} == {0o640}


@pytest.mark.parametrize("name", ["model.json", "tensors"])
def test_one_flipped_bit_is_an_error(name: str, tmp_path: Path) -> None:
    folder = written(1.0, tmp_path / "m")
    path = next(folder.glob("model*.safetensors")) if name == "tensors" else folder / name
    content = path.read_bytes()
    for place in range(0, len(content), max(len(content) // 60, 1)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(bytes(damaged))
        try:
            found, description = read_folder(folder)
        except ValueError:
            continue
        # White space of the listing holds nothing.
        assert name == "model.json" and description["value"] == 1.0
        assert np.array_equal(found["weights"], np.full(50, 1.0))


FOREIGN = ("", "no JSON", "{", "[1]", "7", "null", '"model"', "\0", "{}", '{"model": 1}')
EARLIER = '{"format": 1, "name": "bias"}'


@pytest.mark.parametrize("content", [*FOREIGN, EARLIER])
def test_what_is_no_model_of_ours_says_so(content: str, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="fit the model and save it again") as caught:
        read_folder(tmp_path)
    assert str(caught.value).startswith(f"{path} is of no model") and caught.value.__cause__ is None
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"model\.json is of no model"):
        read_folder(tmp_path)


SAVE_FOR_EVER = """
import sys
import numpy as np
from dlcf.runtime.saving import write_folder
first, folder = int(sys.argv[1]), sys.argv[2]
value = first
while True:
    value += 2
    write_folder(folder, {"weights": np.full(200_000, float(value))}, {"value": value})
    print(value, flush=True)
"""


def saver(first: int, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SAVE_FOR_EVER, str(first), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_save_leaves_a_whole_model(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    for number in range(6):
        process = saver(1000 * number, folder)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 * number)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found, description = read_folder(folder)
        assert (found["weights"] == description["value"]).all()


def test_loading_while_others_save_mixes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    savers = [saver(0, folder), saver(1, folder)]
    try:
        for process in savers:
            assert process.stdout is not None
            process.stdout.readline()
        seen = set()
        until = time.monotonic() + 3
        while time.monotonic() < until:
            found, description = read_folder(folder)
            assert (found["weights"] == description["value"]).all()
            seen.add(description["value"])
        assert len(seen) > 3
    finally:
        for process in savers:
            process.kill()
            process.communicate()
    found, description = read_folder(folder)
    assert (found["weights"] == description["value"]).all()


def test_arrays_come_back_in_another_process(tmp_path: Path) -> None:
    folder = written(3.0, tmp_path / "m")
    with get_context("spawn").Pool(1) as pool:
        found, _ = pool.apply(saving.read_folder, (folder,))
    assert np.array_equal(found["weights"], np.full(50, 3.0))
