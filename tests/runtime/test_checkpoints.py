"""Checkpoints: a killed run ends with the bits of one that was not; damage is never loaded."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock

from dlcf.fast import disabled
from dlcf.models.base import Recommender
from dlcf.registry import fit_together, load_model, make
from dlcf.runtime.checkpoints import KEPT, Checkpoint, checkpoints
from dlcf.runtime.paths import ROOT

SETTINGS: dict[str, dict[str, Any]] = {
    "deepcf": {"epochs": 6, "embedding_size": 8, "hidden": (16, 8), "dropout": (0.2, 0.1)},
    "mf": {"epochs": 6, "factors": 6, "batch_size": 64, "validation_fraction": 0.1},
    "svdpp": {"epochs": 6, "factors": 6, "batch_size": 64, "validation_fraction": 0.1},
    "deepcf-plus": {"history_size": 8, "folds": 2, "cuts": (0.5,), "epochs": 4, "batch_size": 128},
}
SETTINGS["deepcf"]["lr_patience"] = 0  # so that the schedule's state matters
# A process that fits the model named by its arguments, and saves it.
PROGRAM = """
import sys
import pandas as pd, torch
from dlcf.runtime.checkpoints import checkpoints
from dlcf.registry import make
torch.set_num_threads(1)
name, ratings, folder, output, settings = sys.argv[1:]
train = pd.read_csv(ratings).astype({"rating": "float32"})
with checkpoints(folder, steps=3):
    print("fitting", flush=True)
    make(name, seed=0, **eval(settings)).fit(train).save(output)
"""


def predictions(model: Recommender, ratings: pd.DataFrame) -> bytes:
    return model.predict(ratings).tobytes()


class Interrupted(Exception):
    """Raised where a process would have been killed."""


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("stop_at", [2, 17])
def test_an_interrupted_run_ends_with_the_same_bits(
    name: str,
    stop_at: int,
    toy_ratings: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped at the second checkpoint, and again at the seventeenth, somewhere in an epoch."""
    expected = make(name, seed=0, **SETTINGS[name]).fit(toy_ratings)
    saves = 0
    save = Checkpoint.save

    def save_and_stop(self: Checkpoint, state: Any) -> None:
        nonlocal saves
        save(self, state)
        saves += 1
        if saves == stop_at:
            raise Interrupted

    monkeypatch.setattr(Checkpoint, "save", save_and_stop)
    with checkpoints(tmp_path, steps=2), pytest.raises(Interrupted):
        make(name, seed=0, **SETTINGS[name]).fit(toy_ratings)
    torch.manual_seed(5)
    with checkpoints(tmp_path, steps=2):
        resumed = make(name, seed=0, **SETTINGS[name]).fit(toy_ratings)
    assert saves > stop_at
    assert predictions(resumed, toy_ratings) == predictions(expected, toy_ratings)
    assert resumed.history == expected.history  # type: ignore[attr-defined]
    saves_of_a_whole_run = saves
    with checkpoints(tmp_path, steps=2):
        again = make(name, seed=0, **SETTINGS[name]).fit(toy_ratings)
    assert saves == saves_of_a_whole_run  # what is complete is not trained again
    assert predictions(again, toy_ratings) == predictions(expected, toy_ratings)


def test_models_fitted_together_keep_checkpoints_in_their_processes(
    toy_ratings: pd.DataFrame, tmp_path: Path
) -> None:
    """Each goes on from its own, which other processes made."""
    settings = SETTINGS["deepcf"]
    torch.set_num_threads(2)  # reset_randomness puts it back
    with checkpoints(tmp_path, steps=4):
        fit_together("deepcf", [0, 1], toy_ratings, **settings)
    torch.set_num_threads(1)
    assert len(list(tmp_path.iterdir())) == 2
    for folder in tmp_path.iterdir():  # as if killed before the last was written
        max(folder.iterdir()).unlink()
    before = [max(folder.iterdir()) for folder in tmp_path.iterdir()]
    torch.set_num_threads(2)
    with checkpoints(tmp_path, steps=4):
        resumed = fit_together("deepcf", [0, 1], toy_ratings, **settings)
    assert all(path < max(path.parent.iterdir()) for path in before)
    torch.set_num_threads(1)
    for seed, model in enumerate(resumed):
        alone = make("deepcf", seed=seed, **settings).fit(toy_ratings)
        assert predictions(model, toy_ratings) == predictions(alone, toy_ratings)


def test_a_killed_process_resumes(toy_ratings: pd.DataFrame, tmp_path: Path) -> None:
    """SIGKILL at a random moment, twice; then the same command to the end."""
    settings = {**SETTINGS["deepcf"], "epochs": 40, "batch_size": 16}
    expected = make("deepcf", seed=0, **settings).fit(toy_ratings)
    source, folder, output = tmp_path / "ratings.csv", tmp_path / "checkpoints", tmp_path / "model"
    toy_ratings.to_csv(source, index=False)
    command = [sys.executable, "-c", PROGRAM, "deepcf", source, folder, output, repr(settings)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    generator = np.random.default_rng()
    for _ in range(2):
        before = newest(folder)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        while newest(folder) <= before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert predictions(load_model(output), toy_ratings) == predictions(expected, toy_ratings)


def newest(folder: Path) -> int:
    """The highest number of a checkpoint, 0 where there is none."""
    names = [path.stem for path in folder.glob("*/*.pt") if path.stem.isdecimal()]
    return max(map(int, names), default=0)


@pytest.mark.parametrize(
    "damage", ["cut off", "altered", "checksum altered", "checksum cut off", "empty", "unreadable"]
)
def test_a_damaged_checkpoint_is_not_loaded(damage: str, tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 1)
    with checkpoints(tmp_path):
        checkpoint = Checkpoint(network, [], 0)
        for step in range(4):
            checkpoint.save({"step": step, "weights": torch.full((100,), float(step))})
        kept = sorted(checkpoint.folder.glob("*.pt"))
        assert len(kept) == KEPT == len(list(checkpoint.folder.glob("[!.]*")))
        newest = kept[-1]
        content = bytearray(newest.read_bytes())
        if damage == "cut off":
            content = content[:-7]
        elif damage == "altered":
            content[-5] ^= 1
        elif damage == "checksum altered":
            content[3] ^= 1
        elif damage == "checksum cut off":
            content = content[:20]
        elif damage == "empty":
            content = bytearray()
        newest.unlink()
        if damage == "unreadable":
            newest.mkdir()
        else:
            newest.write_bytes(content)
        half_written = checkpoint.folder / f".00000009.pt.{'0a' * 16}.part"
        half_written.write_bytes(b"half")
        again = Checkpoint(network, [], 0)
        with pytest.warns(UserWarning, match="damaged"):
            state = again.load()
        assert state["step"] == 2 and bool((state["weights"] == 2).all())
        again.save({"step": 5})
        assert not half_written.exists()
        assert Checkpoint(network, [], 0).load() == {"step": 5}
        assert Checkpoint(network, [], 1).load() is None


def test_a_checkpoint_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content is on disk before it has a name that is read."""
    events: list[str] = []
    sync, replace = os.fsync, Path.replace

    def noted_sync(number: int) -> None:
        events.append("sync")
        sync(number)

    def noted_replace(path: Path, target: Path) -> Path:
        name = re.sub("[0-9a-f]{32}", "X", path.name)
        events.append(f"{name} -> {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    with checkpoints(tmp_path):
        Checkpoint(torch.nn.Identity(), [], 0).save({"step": 1})
    assert events == ["sync", ".00000001.pt.X.part -> 00000001.pt"]


def test_a_folder_is_named_as_anywhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with checkpoints("~/kept"):
        assert Checkpoint(torch.nn.Identity(), [], 0).folder.parent == tmp_path / "kept"
    with pytest.raises(ValueError, match="a path is empty"), checkpoints(""):
        pass


def interrupted(name: str, ratings: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that is cut off at its second checkpoint."""
    save, saves = Checkpoint.save, 0

    def save_and_stop(self: Checkpoint, state: Any) -> None:
        nonlocal saves
        save(self, state)
        saves += 1
        if saves == 2:
            raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Checkpoint, "save", save_and_stop)
        make(name, seed=0, **SETTINGS[name]).fit(ratings)


@pytest.mark.parametrize("name", ["mf", "deepcf", "svdpp"])
def test_another_way_to_compute_does_not_go_on_from_it(
    name: str, toy_ratings: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the fast steps left is none of the plain one's, and the other way round."""
    fast = make(name, seed=0, **SETTINGS[name]).fit(toy_ratings)
    with disabled():
        plain = make(name, seed=0, **SETTINGS[name]).fit(toy_ratings)
    with checkpoints(tmp_path):
        interrupted(name, toy_ratings, monkeypatch)
        with disabled():
            found = make(name, seed=0, **SETTINGS[name]).fit(toy_ratings)
        assert predictions(found, toy_ratings) == predictions(plain, toy_ratings)
        found = make(name, seed=0, **SETTINGS[name]).fit(toy_ratings)
        assert predictions(found, toy_ratings) == predictions(fast, toy_ratings)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("change", ["renamed", "lost", "other"])
def test_a_checkpoint_of_other_code_says_what_to_do(
    name: str,
    change: str,
    toy_ratings: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with checkpoints(tmp_path):
        interrupted(name, toy_ratings, monkeypatch)
        load = Checkpoint.load

        def load_other(self: Checkpoint) -> Any:
            state = load(self)
            step = {"lost": {}, "other": {"embeddings": torch.zeros(3)}}.get(change)
            state["step"] = (
                step if step is not None else {f"_{k}": v for k, v in state["step"].items()}
            )
            return state

        monkeypatch.setattr(Checkpoint, "load", load_other)
        with pytest.raises(ValueError, match="is of another version of this code") as caught:
            make(name, seed=0, **SETTINGS[name]).fit(toy_ratings)
    said = str(caught.value)
    assert said.startswith(str(tmp_path)) and "; delete it, or" in said and "\n" not in said


def test_nested_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {
        "numbers": [0.1, 1 / 3, float("inf"), 2**70, -1, True, None, "text"],
        "nested": {0: {"a": torch.arange(6).view(2, 3).T}, "b": []},
        "empty": {},
        "generator": np.random.default_rng(0).bit_generator.state,  # integers of 128 bits
    }
    with checkpoints(tmp_path):
        Checkpoint(torch.nn.Identity(), [], 0).save(state)
        loaded = Checkpoint(torch.nn.Identity(), [], 0).load()
    assert loaded["numbers"] == state["numbers"] and loaded["empty"] == {}
    assert loaded["generator"] == state["generator"]
    assert list(loaded["nested"]) == [0, "b"] and loaded["nested"]["b"] == []
    assert torch.equal(loaded["nested"][0]["a"], torch.arange(6).view(2, 3).T)


FOREIGN = (
    ".DS_Store",
    "notes.txt",
    "notes.pt",
    "7.pt",
    "0000000١.pt",
    ".mine.pt",
    "00000009.pt.bak",
)


def test_files_of_others_neither_stop_training_nor_go(
    toy_ratings: pd.DataFrame, tmp_path: Path
) -> None:
    settings = SETTINGS["mf"]
    expected = make("mf", seed=0, **settings).fit(toy_ratings)
    with checkpoints(tmp_path):
        make("mf", seed=0, **{**settings, "epochs": 3}).fit(toy_ratings)
        (folder,) = tmp_path.iterdir()
    for place in (tmp_path, folder):
        for name in FOREIGN:
            (place / name).write_text("mine")
    (folder / "sub.pt").mkdir()
    (folder / "00000001.pt").unlink(missing_ok=True)
    (folder / "00000001.pt").mkdir()  # of our name, but a folder
    with checkpoints(tmp_path, steps=2):
        again = make("mf", seed=0, **{**settings, "epochs": 3}).fit(toy_ratings)
        found = make("mf", seed=0, **settings).fit(toy_ratings)
    assert len(again.history.train_loss) == 3  # type: ignore[attr-defined]
    assert predictions(found, toy_ratings) == predictions(expected, toy_ratings)
    for place in (tmp_path, folder):
        assert all((place / name).read_text() == "mine" for name in FOREIGN)
    assert (folder / "sub.pt").is_dir()


def test_a_folder_of_a_checkpoints_name_does_not_stop_the_next(tmp_path: Path) -> None:
    with checkpoints(tmp_path):
        checkpoint = Checkpoint(torch.nn.Identity(), [], 0)
        (checkpoint.folder / "00000000.pt").mkdir()
        for step in range(4):
            checkpoint.save({"step": step})
        assert Checkpoint(torch.nn.Identity(), [], 0).load() == {"step": 3}


HOLDER = """
import sys, time, torch
from dlcf.runtime.checkpoints import Checkpoint, checkpoints
with checkpoints(sys.argv[1]):
    Checkpoint(torch.nn.Identity(), [], 0)
    print("locked", flush=True)
    time.sleep(600)
"""


def test_the_same_training_at_once_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None and first.stdout.readline() == "locked\n"
            (folder,) = tmp_path.iterdir()
            with checkpoints(tmp_path):
                with pytest.raises(RuntimeError, match="another process trains this") as caught:
                    Checkpoint(torch.nn.Identity(), [], 0)
                assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
                Checkpoint(torch.nn.Identity(), [], 1)  # something else may be trained
        finally:
            first.send_signal(signal.SIGKILL)
    with checkpoints(tmp_path):
        Checkpoint(torch.nn.Identity(), [], 0).save({"step": 1})


def test_only_the_first_process_of_several_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlcf.runtime.checkpoints.is_first", lambda: False)
    with checkpoints(tmp_path):
        Checkpoint(torch.nn.Identity(), [], 0)
    assert not list(tmp_path.iterdir())


def test_an_error_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), checkpoints(tmp_path):
        checkpoint = Checkpoint(torch.nn.Identity(), [], 0)
        raise Interrupted
    with FileLock(checkpoint.folder / ".lock", timeout=0, is_singleton=False):
        pass
