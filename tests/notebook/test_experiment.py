"""What stands around a notebook: parameters, outputs, runner, report."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from tqdm import tqdm

import dlcf
from dlcf.notebook import experiment, report, run
from dlcf.runtime import paths
from dlcf.runtime.paths import write_atomically

CELLS = [
    ("COUNT = 3  # a number\nNAME = 'x'\nRATE = 0.5", ["parameters"]),
    ("from dlcf.notebook import experiment\nrun = experiment.start('toy', globals())", []),
    ("run.record({'twice': 2 * COUNT})", []),
]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one small notebook."""
    notebook = nbformat.v4.new_notebook()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    for source, tags in CELLS:
        notebook.cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": tags}))
    for name in ("ROOT", "NOTEBOOKS", "RUNS", "RESULTS", "FIGURES", "CACHE"):
        folder = tmp_path if name == "ROOT" else tmp_path / name.lower()
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(paths, name, folder)
    nbformat.write(notebook, tmp_path / "notebooks" / "toy.ipynb")
    monkeypatch.delenv(experiment.CHECK, raising=False)
    monkeypatch.delenv(experiment.OUTPUT, raising=False)
    return tmp_path


def started(**injected: Any) -> experiment.Run:
    namespace: dict[str, Any] = {"COUNT": 3, "NAME": "x", "RATE": 0.5, **injected}
    lines = [f"{name} = {value!r}" for name, value in injected.items()]
    namespace["In"] = ["", CELLS[0][0], "\n".join(["# Parameters", *lines])]
    return experiment.start("toy", namespace)


def test_parameters_are_read_from_the_tagged_cell(checkout: Path) -> None:
    assert experiment.read_parameters("toy") == {"COUNT": 3, "NAME": "x", "RATE": 0.5}
    with pytest.raises(ValueError, match="no notebook 'nope' in notebooks/; there are toy"):
        experiment.read_parameters("nope")


@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ({"COUNTS": 4}, "toy has no parameter COUNTS; it takes COUNT, NAME, RATE"),
        ({"count": 4}, "toy has no parameter count"),
        ({"COUNT": "4"}, "COUNT is '4'; give int, such as 3"),
        ({"COUNT": True}, "COUNT is True"),
        ({"NAME": 7}, "NAME is 7; give str"),
    ],
)
def test_an_unknown_or_wrong_parameter_is_an_error(
    checkout: Path, injected: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        started(**injected)


def test_an_int_will_do_for_a_float(checkout: Path) -> None:
    assert started(RATE=1).parameters["RATE"] == 1


STORED = {
    "DATASET": "ml-latest-small",
    "SPLIT": "random",
    "SEED": 0,
    "EPOCHS": 2,
    "INNER_EPOCHS": 2,
    "K": 10,
    "BATCH_SIZE": 64,
    "FACTORS": 5,
    "MODELS": 2,
    "USERS": 20,
    "MASK": 3,
    "PRESET": "quick",
    "LAMBDA_WEIGHT": 0.5,
}


@pytest.fixture
def study(checkout: Path) -> Path:
    """The same repository; its notebook takes what the real ones take."""
    path = checkout / "notebooks" / "toy.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = "\n".join(f"{name} = {value!r}" for name, value in STORED.items())
    nbformat.write(notebook, path)
    return checkout


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SEED", "-1", "toy: SEED is -1; give 0 or more"),
        ("EPOCHS", "0", "toy: EPOCHS is 0; give 1 or more"),
        ("INNER_EPOCHS", "0", "toy: INNER_EPOCHS is 0; give 1 or more"),
        ("K", "0", "toy: K is 0; give 1 or more"),
        ("BATCH_SIZE", "-64", "toy: BATCH_SIZE is -64; give 1 or more"),
        ("FACTORS", "0", "toy: FACTORS is 0; give 1 or more"),
        ("MODELS", "1", "toy: MODELS is 1; give 2 or more"),
        ("USERS", "0", "toy: USERS is 0; give 1 or more"),
        ("SPLIT", "foo", "toy: SPLIT is 'foo'; give one of random, user-temporal, "),
        ("DATASET", "nope", "toy: DATASET: unknown data set 'nope'; use one of ml-latest-small, "),
        ("DATASET", "7", "toy: DATASET is 7; give str"),
        ("DATASET", "", "toy: DATASET: "),
        ("PRESET", "slow", "toy: PRESET is 'slow'; give one of "),
        ("SEED", "4294967296", "toy: SEED is 4294967296; give a number below 4294967296"),
        ("MASK", "-99999999999", "toy: MASK is -99999999999; give a number below 4294967296"),
        ("LAMBDA_WEIGHT", "nan", "toy: LAMBDA_WEIGHT is 'nan'; give float"),
        ("LAMBDA_WEIGHT", "inf", "toy: LAMBDA_WEIGHT is 'inf'; give float"),
        ("LAMBDA_WEIGHT", "-0.1", "toy: LAMBDA_WEIGHT is -0.1; give 0 or more"),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_anything_runs(
    study: Path, capsys: pytest.CaptureFixture[str], name: str, value: str, message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        run.main(["toy", "-p", name, value])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    assert not list((study / "runs").iterdir())


def test_a_split_that_one_notebook_cannot_show_is_refused_there_alone() -> None:
    with pytest.raises(ValueError, match=r"SPLIT is 'leave-last-out'; give one of random, "):
        experiment.check_parameters("07_beyond_accuracy", {"SPLIT": "leave-last-out"})
    experiment.check_parameters("00_start_here", {"SPLIT": "leave-last-out"})


def test_a_started_notebook_refuses_such_a_value_too(study: Path) -> None:
    namespace = {**STORED, "SEED": -1, "In": ["", "# Parameters\nSEED = -1"]}
    with pytest.raises(ValueError, match="SEED is -1"):
        experiment.start("toy", namespace)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_is_refused(study: Path, value: float) -> None:
    with pytest.raises(ValueError, match=f"LAMBDA_WEIGHT is {value}; give "):
        experiment.check_parameters("toy", {"LAMBDA_WEIGHT": value})


def test_values_that_can_be_are_taken(study: Path) -> None:
    given = {"SEED": 0, "EPOCHS": 1, "K": 1, "MASK": 0, "SPLIT": "leave-last-out"}
    experiment.check_parameters("toy", {**given, "DATASET": "ml-100k"})


def test_a_folder_is_found_from_where_the_user_stands(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine", "ml-100k"):
        (study / name).mkdir()
        (study / name / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,3,4\n")
    monkeypatch.chdir(study)
    monkeypatch.setenv("HOME", str(study))
    for given in ("mine", "./mine", "~/mine", str(study / "mine")):
        chosen = run.choose_parameters(["toy"], {"DATASET": given})
        assert chosen == {"toy": {"DATASET": str((study / "mine").resolve())}}
    # A known name is the data set's, as `load_ratings` takes it; it is fetched before all else.
    fetched: list[str] = []
    monkeypatch.setattr(run, "obtain", lambda name, _: fetched.append(name))
    assert run.choose_parameters(["toy"], {"DATASET": "ml-100k"}) == {"toy": {"DATASET": "ml-100k"}}
    assert fetched == ["ml-100k"]


@pytest.mark.parametrize("name", sorted(p.stem for p in paths.NOTEBOOKS.glob("*.ipynb")))
def test_what_notebooks_store_can_be(name: str) -> None:
    experiment.check_parameters(name, experiment.read_parameters(name))


def test_other_parameters_write_elsewhere(checkout: Path) -> None:
    assert started().folder == checkout
    assert started(COUNT=3).folder == checkout
    other = started(COUNT=5, NAME="../a b")
    assert other.folder.parent == checkout / "runs"
    assert other.folder.name.startswith("toy-COUNT=5-NAME=.._a_b-")
    other.record({"twice": 10})
    assert not (checkout / "results" / "toy.json").exists()
    assert (other.folder / "results" / "toy.json").is_file()


def test_results_hold_plain_rounded_numbers(checkout: Path) -> None:
    numbers = {"a": np.float32(0.5), "b": [np.int64(3), 1 / 3], "c": {"d": "text", 4: None}}
    started().record(numbers)
    kept = json.loads((checkout / "results" / "toy.json").read_text())
    assert kept["numbers"] == {"a": 0.5, "b": [3, 0.333333], "c": {"d": "text", "4": None}}
    assert kept["parameters"] == {"COUNT": 3, "NAME": "x", "RATE": 0.5}


def test_checking_compares_and_writes_nothing(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkout / "results" / "toy.json"
    started().record({"a": 0.5, "b": [1, "x"]})
    before = path.read_bytes()
    monkeypatch.setenv(experiment.CHECK, "1")
    started().record({"a": 0.5004, "b": [1, "x"]}, tolerance=1e-3)
    for numbers, message in [
        ({"a": 0.502, "b": [1, "x"]}, "numbers.a: 0.5 in the file, 0.502"),
        ({"a": float("nan"), "b": [1, "x"]}, "numbers.a"),
        ({"a": 0.5, "b": [2, "x"]}, "b.0.: 1 in the file, 2"),
        ({"a": 0.5, "b": [1, "y"]}, "'x' in the file, 'y'"),
        ({"a": 0.5, "b": [1]}, "only in the file"),
        ({"a": 0.5, "b": [1, "x"], "c": 1}, "only in the notebook"),
    ]:
        with pytest.raises(AssertionError, match=message):
            started().record(numbers, tolerance=1e-3)
    assert path.read_bytes() == before


def test_figures_are_the_same_bytes_each_time(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    for _ in range(2):
        figure, axis = plt.subplots()
        axis.plot([1, 2, 3])
        started().save_figure(figure, "line")
        written.append([(checkout / "figures" / f"line.{e}").read_bytes() for e in ("pdf", "png")])
        assert not plt.get_fignums()
    assert written[0] == written[1]
    monkeypatch.setenv(experiment.CHECK, "1")
    started().save_figure(plt.figure(), "other")
    assert not list((checkout / "figures").glob("other*"))


def test_other_parameters_have_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "read_parameters", lambda _: {"DATASET": "ml-latest-small"})
    names = ["/data/ml a", "/data/ml_a", "/data/ml/a", "/data/ml-a", "x" * 300, "x" * 301]
    folders = {experiment.output_folder("toy", {"DATASET": name}) for name in names}
    assert len(folders) == len(names)
    assert max(len(folder.name) for folder in folders) < 255


def test_a_parameter_that_is_stored_anyway_is_no_change(checkout: Path) -> None:
    assert run.choose_parameters(["toy"], {"COUNT": 3, "RATE": 2}) == {"toy": {"RATE": 2}}
    with pytest.raises(ValueError, match=r"COUNT is 3\.0"):
        run.choose_parameters(["toy"], {"COUNT": 3.0})


def test_the_runner_executes_a_notebook(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The kernel is another process: it must find this checkout by itself.
    monkeypatch.setenv("PYTHONPATH", str(_package_copy(checkout)))
    assert run.main(["toy", "-p", "COUNT", "5", "--output", str(checkout / "out")]) == 0
    executed = nbformat.read(checkout / "out" / "toy.ipynb", as_version=4)
    assert "1 values" in executed.cells[-1].outputs[0]["text"]
    result = json.loads((checkout / "runs" / "toy-COUNT=5" / "results" / "toy.json").read_text())
    assert result["numbers"] == {"twice": 10}
    assert "toy-COUNT=5" in capsys.readouterr().out


def test_the_progress_bar_shows_cells_and_minutes(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(run.papermill, "execute_notebook", lambda *_, **how: given.update(how))
    run.run_notebook("toy", {}, checkout / "out" / "toy.ipynb")
    with tqdm(total=3, unit="cell", file=(shown := io.StringIO()), **given["progress_bar"]) as bar:
        assert bar.disable  # it is no terminal
    always = {**given["progress_bar"], "disable": False}
    with tqdm(total=3, unit="cell", file=shown, **always) as bar:
        bar.start_t -= 80
        bar.update(2)
        bar.refresh()
        assert re.fullmatch(r"toy: 2 of 3 cells, 01:\d\d *", shown.getvalue().split("\r")[-1])


def test_the_runner_executes_two_notebooks_at_a_time(checkout: Path) -> None:
    """Each of two waits for the other to begin; then the second fails."""
    environment = {**os.environ, "PYTHONPATH": str(_package_copy(checkout))}
    for name, awaited, end in (("one", "two", ""), ("two", "one", "1 / 0")):
        cells = [
            "COUNT = 3",
            f"import pathlib, time\npathlib.Path('{name}').touch()\nend = time.time() + 100",
            f"while not pathlib.Path('{awaited}').exists():\n    assert time.time() < end",
            end,
        ]
        notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, cells)])
        notebook.cells[0].metadata["tags"] = ["parameters"]
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": ""}
        nbformat.write(notebook, checkout / "notebooks" / f"{name}.ipynb")
    program = [sys.executable, "-m", "dlcf", "run", "one", "two"]
    ended = subprocess.run(program, env=environment, capture_output=True, text=True, cwd=checkout)
    assert ended.returncode == 1, ended.stderr
    assert {"one ...", "two ..."} <= set(ended.stdout.splitlines())
    assert "two, cell [4]: ZeroDivisionError" in ended.stderr.splitlines()[-1]


def test_runs_with_other_parameters_keep_their_executed_notebooks(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    executed: list[Path] = []

    def execute(notebook: str, parameters: dict[str, Any], output: Path) -> float:
        executed.append(output.relative_to(checkout))
        return 0.0

    monkeypatch.setattr(run, "run_notebook", execute)
    for arguments in (
        [],
        ["-p", "COUNT", "3"],
        ["-p", "COUNT", "5"],
        ["-p", "COUNT", "6"],
        ["-p", "COUNT", "6", "--output", str(checkout / "out")],
    ):
        assert run.main(["toy", *arguments]) == 0
        said = f"Executed notebooks: {(checkout / executed[-1]).parent}\n"
        assert said in capsys.readouterr().out
    folders = ["runs", "runs", "runs/toy-COUNT=5", "runs/toy-COUNT=6", "out"]
    assert executed == [Path(folder) / "toy.ipynb" for folder in folders]
    monkeypatch.setenv(experiment.OUTPUT, str(checkout / "job"))
    assert run.main(["toy", "-p", "COUNT", "5"]) == 0
    assert executed[-1] == Path("job/toy.ipynb")


def _package_copy(checkout: Path) -> Path:
    """Make `checkout` a checkout whose package is this one."""
    (checkout / "pyproject.toml").touch()
    os.symlink(Path(dlcf.__file__).parent, checkout / "dlcf")
    (checkout / "sitecustomize.py").write_text(
        f"import dlcf.runtime.paths as p, pathlib\nroot = pathlib.Path({str(checkout)!r})\n"
        "p.ROOT, p.NOTEBOOKS, p.RUNS = root, root / 'notebooks', root / 'runs'\n"
    )
    return checkout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toy", "-p", "COUNTS", "5"], "no notebook takes COUNTS"),
        (["toy", "-p", "COUNT", "five"], "COUNT is 'five'"),
        (["nope"], "no notebook 'nope'"),
        (["toy", "--keep", "-p", "COUNT", "5"], "leave out -p"),
        (["toy", "--output", "CHECKOUT/notebooks"], "would replace the notebooks"),
        ([], "no notebooks in"),
    ],
)
def test_the_runner_refuses_before_it_runs(
    checkout: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as end:
        run.main([argument.replace("CHECKOUT", str(checkout)) for argument in arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list((checkout / "runs").iterdir())


def test_kept_notebooks_lose_what_changes_by_itself(checkout: Path) -> None:
    notebook = nbformat.read(checkout / "notebooks" / "toy.ipynb", as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}  # of the kernel that executed it
    notebook.metadata["widgets"] = {"state": {}}
    notebook.cells[1].metadata["papermill"] = {"duration": 1.23}
    notebook.cells[1].metadata["execution"] = {"iopub.execute_input": "2020-01-01"}
    nbformat.write(notebook, checkout / "runs" / "toy.ipynb")
    run.keep_outputs(checkout / "runs" / "toy.ipynb")
    text = (checkout / "notebooks" / "toy.ipynb").read_text()
    for word in ("widgets", "papermill", "iopub", "duration"):
        assert word not in text
    assert experiment.read_parameters("toy")["COUNT"] == 3


def test_the_report_replaces_only_its_block(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="results:begin"):
        report.with_tables("nothing here")
    blocks = "".join(f"<!-- {n}:begin -->\nold\n<!-- {n}:end -->\n" for n in ("results", "bench"))
    text = f"before\n{blocks}after\n"
    made = report.with_tables(text)
    assert made.startswith("before\n") and made.endswith("after\n") and "old" not in made
    assert report.with_tables(made) == made


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_atomically(tmp_path / "a" / "b.txt", "old")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]
