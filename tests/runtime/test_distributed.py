"""Two processes that share each batch train the model that one process trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from toy_models import user_ratings

from dlcf.registry import load_model, make
from dlcf.runtime.paths import ROOT

PROGRAM = """
import sys
import pandas as pd, torch
from dlcf.runtime import distributed
from dlcf.runtime.checkpoints import checkpoints
from dlcf.registry import make
from toy_models import user_ratings
torch.set_num_threads(1)
ratings, folder = sys.argv[1:]
train = pd.read_csv(ratings).astype({"rating": "float32"})
with distributed.process_group(), checkpoints(folder + "/checkpoints", steps=5):
    assert distributed.n_processes() == 2
    rank = torch.distributed.get_rank()
    for name, settings in SETTINGS.items():
        model = make(name, seed=0, **settings).fit(train)
        model.save(f"{folder}/{name}-{rank}")
    for size in SIZES:
        torch.save(user_ratings(rank, size), f"{folder}/{size}-{rank}.pt")
"""
SETTINGS = {
    "deepcf": {"epochs": 3, "embedding_size": 8, "hidden": (16, 8), "dropout": (0.3, 0.1)},
    "mf": {"epochs": 3, "factors": 6, "batch_size": 65, "validation_fraction": 0.1},
    "svdpp": {"epochs": 3, "factors": 6, "batch_size": 65, "validation_fraction": 0.1},
}
SIZES = (1, 3)  # of batches; of one row, the part of one of the processes is empty


@pytest.fixture(scope="module")
def folder(toy_ratings: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each of two processes has saved what it trained."""
    folder = tmp_path_factory.mktemp("distributed")
    program, source = folder / "program.py", folder / "ratings.csv"
    program.write_text(f"SETTINGS = {SETTINGS!r}\nSIZES = {SIZES!r}\n{PROGRAM}")
    toy_ratings.to_csv(source, index=False)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    here = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, program, source, folder], env=environment, check=True)
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_train_the_model_of_one(
    name: str, folder: Path, toy_ratings: pd.DataFrame
) -> None:
    alone = make(name, seed=0, **SETTINGS[name]).fit(toy_ratings)
    first, second = (load_model(folder / f"{name}-{rank}") for rank in range(2))
    assert first.predict(toy_ratings).tobytes() == second.predict(toy_ratings).tobytes()
    np.testing.assert_allclose(first.predict(toy_ratings), alone.predict(toy_ratings), atol=2e-4)
    losses = [model.history.train_loss for model in (first, alone)]  # type: ignore[attr-defined]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    untrained = make(name, seed=0, **{**SETTINGS[name], "epochs": 1}).fit(toy_ratings)
    assert np.abs(untrained.predict(toy_ratings) - alone.predict(toy_ratings)).max() > 0.01


def test_one_process_alone_writes_checkpoints(folder: Path) -> None:
    trained = list((folder / "checkpoints").iterdir())
    assert len(trained) == len(SETTINGS) + len(SIZES)
    for path in trained:
        assert len(list(path.glob("[!.]*"))) == 2


@pytest.mark.parametrize("size", SIZES)
def test_the_first_process_draws_for_all(size: int, folder: Path) -> None:
    """Each has a seed of its own; the weights to begin with and the order are those of one."""
    alone = user_ratings(0, size)
    for rank in range(2):
        found = torch.load(folder / f"{size}-{rank}.pt")
        for name, expected in alone.items():
            torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-5)
