"""A sweep that is killed goes on where it stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from dlcf.runtime import paths

needs_snakemake = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None,
    reason='Snakemake is not installed: pip install "dlcf[sweep]"',
)
needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None,
    reason='Optuna is not installed: pip install "dlcf[tune]"',
)
PATIENCE = 1800  # seconds; only a machine that is very busy needs more than half a minute
# It writes down when it starts. While the file `hold` is there, only the first job comes to an end.
CELLS = [
    ("COUNT = 0  # a number", ["parameters"]),
    (
        """import json, os, time
from pathlib import Path
root = Path(os.environ["SWEEP_ROOT"])
with (root / "started").open("a") as file:
    file.write(f"{COUNT}\\n")
while (root / "hold").exists() and (root / "done").exists():
    time.sleep(0.05)
folder = Path(os.environ["DLCF_OUTPUT_DIR"]) / "results"
folder.mkdir(parents=True, exist_ok=True)
(folder / "toy.json").write_text(json.dumps({"twice": 2 * COUNT}))
(root / "done").write_text("one is")""",
        [],
    ),
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The package, the workflow and one small notebook that imports nothing heavy."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("dlcf", "workflow"):
        shutil.copytree(paths.ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(paths.ROOT / "pyproject.toml", tmp_path)
    notebook = nbformat.v4.new_notebook()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    for source, tags in CELLS:
        notebook.cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": tags}))
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "toy.ipynb")
    (tmp_path / "sweep.yaml").write_text(
        "notebooks: {toy: {COUNT: [1, 2, 3]}}\nfolder: out\nthreads: 1\nmem_mb: 100\nminutes: 5\n"
    )
    return tmp_path


def snakemake(checkout: Path) -> subprocess.Popen[bytes]:
    """README's command."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
    command += ["--configfile", "sweep.yaml", "--cores", "1"]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "SWEEP_ROOT": str(checkout)}
    with (checkout / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=log, stderr=log, start_new_session=True
        )


@needs_snakemake
def test_a_killed_sweep_does_not_redo_what_was_finished(checkout: Path) -> None:
    (checkout / "hold").write_text("")
    sweep = snakemake(checkout)
    started = checkout / "started"
    deadline = time.monotonic() + PATIENCE
    try:
        while not started.is_file() or len(started.read_text().split()) < 2:
            assert sweep.poll() is None, (checkout / "log").read_text()
            assert time.monotonic() < deadline, (checkout / "log").read_text()
            time.sleep(0.1)
        assert snakemake(checkout).wait(PATIENCE) == 1
        last = (checkout / "log").read_text().splitlines()[-1]
        assert last == f"another sweep writes to {checkout / 'out'}; wait until it is done"
    finally:
        os.killpg(sweep.pid, signal.SIGKILL)
        sweep.wait()
    (first,) = (checkout / "out").glob("toy/*/results/toy.json")
    before = first.stat()
    (checkout / "hold").unlink()
    cut_off = started.read_text().split()[1]

    assert snakemake(checkout).wait(PATIENCE) == 0, (checkout / "log").read_text()
    after = first.stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    runs = started.read_text().split()
    assert {count: runs.count(count) for count in "123"} == {
        count: 1 + (count == cut_off) for count in "123"
    }
    for count in (1, 2, 3):
        folder = checkout / "out" / "toy" / f"COUNT={count}"
        assert json.loads((folder / "results" / "toy.json").read_text()) == {"twice": 2 * count}
        assert (
            nbformat.read(folder / "toy.ipynb", as_version=4).metadata.papermill.exception is None
        )


@needs_snakemake
@pytest.mark.parametrize(("config", "jobs"), [("config", "notebook 15"), ("tune", "tune 40")])
def test_every_job_of_the_config_is_planned(config: str, jobs: str) -> None:
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
    command += ["--dry-run", "--cores", "1", "--quiet", "rules"]
    command += ["--configfile", f"workflow/{config}.yaml", "--config", "folder=runs/never-made"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert jobs in " ".join((done.stdout + done.stderr).split())


@needs_snakemake
@needs_optuna
def test_a_sweep_of_searches_fills_one_record(
    checkout: Path, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    data = checkout / "my data"
    data.mkdir()
    toy_ratings.to_csv(data / "ratings.csv", index=False)
    movies = toy_movies.assign(genres=toy_movies["genres"].str.join("|"))
    movies[["movieId", "title", "genres"]].to_csv(data / "movies.csv", index=False)
    (checkout / "sweep.yaml").write_text(
        "notebooks: {}\nfolder: out\nthreads: 1\nmem_mb: 100\nminutes: 5\n"
        f"tune: {{datasets: ['{data}'], splits: [random], models: [bias, ease], trials: 2}}\n"
    )
    assert snakemake(checkout).wait(PATIENCE) == 0, (checkout / "log").read_text()
    (record,) = (checkout / "results" / "tuned").glob("*.json")
    (found,) = json.loads(record.read_text())["tuned"].values()
    assert set(found["random"]) == {"bias", "ease"}
