"""The options of a study: it replaces no file but its own, and a part of it never the whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dlcf.paper import components, replication
from dlcf.runtime import paths
from dlcf.studies import ablation, compare, prequential
from dlcf.studies import results as results_module

PARTS = [["--splits", "random"], ["--seeds", "0"], ["--dataset", "ml-100k"]]
STUDIES = [(ablation, part) for part in PARTS]
STUDIES += [(compare, part) for part in [*PARTS, ["--models", "bias"]]]
ALL = [ablation, compare, components, replication]
TWICE = [(study, ["--seeds", "1", "0", "1"]) for study in ALL]
TWICE += [(study, ["--splits", "random", "random"]) for study in ALL]
TWICE += [(compare, ["--models", "bias", "bias"])]
TWICE += [(components, ["--models", "dropout: none", "dropout: none"])]
OTHERS = {
    "thesis.tex": "years",
    "cut.json": '{"provenance": {"study": "',
    "bench.json": "{}",
    "list.json": "[]",
    "nothing.json": '{"provenance": null}',
    "another's.json": '{"provenance": {"study": "another"}}',
    "older.json": '{"provenance": {"commit": "0"}}',
}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results; studies measure nothing."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(results_module, "load_ratings", lambda _: None)
    monkeypatch.setattr(compare, "compare", lambda jobs, _: {"provenance": {"study": "comparison"}})
    monkeypatch.setattr(ablation, "map_in_processes", lambda _, cells, *__: [{} for _ in cells])
    monkeypatch.setattr(ablation, "provenance", lambda study, *_: {"study": study})
    return tmp_path


@pytest.mark.parametrize(("study", "part"), STUDIES)
def test_a_part_needs_a_file_of_its_own(
    study: Any, part: list[str], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = study.RESULTS_NAME
    kept = results / name
    kept.write_text("whole")
    for output in ([], ["--output", str(results / "x" / ".." / name)]):
        with pytest.raises(SystemExit) as end:
            study.main([*part, *output])
        assert end.value.code == 2 and kept.read_text() == "whole"
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"with {part[0]}, give another --output" in error
    assert study.main([*part, "--output", str(results / "part.json")]) == 0
    assert (results / "part.json").is_file() and kept.read_text() == "whole"


@pytest.mark.parametrize("study", [ablation, compare])
def test_the_whole_study_replaces_its_results(study: Any, results: Path) -> None:
    for content in ("older", "its own"):
        if content == "older":
            shutil.copy(paths.ROOT / "results" / study.RESULTS_NAME, results)
        assert study.main(["--workers", "1", "--seeds", "0", "1", "2", "3", "4"]) == 0
        found = json.loads((results / study.RESULTS_NAME).read_text())
        assert "study" in found["provenance"]


def test_a_part_may_be_done_again(results: Path) -> None:
    name = "comparison-ml-100k.json"
    shutil.copy(paths.ROOT / "results" / name, results)
    for output in (name, name, "part.json", "part.json"):
        assert compare.main(["--splits", "random", "--output", str(results / output)]) == 0
        assert "study" in json.loads((results / output).read_text())["provenance"]


@pytest.mark.parametrize(("study", "given"), TWICE)
def test_a_name_given_twice_is_refused(
    study: Any,
    given: list[str],
    results: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interval over one seed three times would have no width."""
    monkeypatch.setattr("dlcf.studies.results.load_ratings", pytest.fail)
    with pytest.raises(SystemExit) as end:
        study.main([*given, "--output", str(results / "part.json")])
    assert end.value.code == 2 and not list(results.iterdir())
    error = f"{given[0]} holds {' '.join(given[1:])}; give each once"
    assert error in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("study", [*ALL, prequential])
def test_what_is_not_of_the_study_is_left_alone(
    study: Any,
    results: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dlcf.studies.results.load_ratings", pytest.fail)
    for name, content in OTHERS.items():
        (results / name).write_text(content)
    (results / "folder").mkdir()
    committed = ["comparison-ml-100k.json", "comparison.json", "ablation.json", "replication.json"]
    others = [name for name in committed if not name.startswith(Path(study.RESULTS_NAME).stem)]
    for name in others:
        shutil.copy(paths.ROOT / "results" / name, results)
    before = {path: path.read_text() for path in results.iterdir() if path.is_file()}
    part = [] if study == prequential else ["--splits", "random", "--seeds", "0"]
    for name in [*OTHERS, *others, "folder", "thesis.tex/part.json", "thesis.tex/x/part.json"]:
        output = results / name
        with pytest.raises(SystemExit) as end:
            study.main([*part, "--output", str(output)])
        assert end.value.code == 2
        assert f"{output} is no result of dlcf" in capsys.readouterr().err.splitlines()[-1]
    assert {path: path.read_text() for path in results.iterdir() if path.is_file()} == before


def test_an_unknown_split_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        compare.main(["--splits", "nope", "--output", str(results / "part.json")])
    assert end.value.code == 2 and not list(results.iterdir())
    assert "invalid choice: 'nope'" in capsys.readouterr().err
