"""The repository agrees with itself: environment, notebooks, figures, results, README."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from dlcf.notebook import report
from dlcf.notebook.experiment import read_parameters
from dlcf.registry import available, make
from dlcf.runtime import paths
from dlcf.studies.compare import OUTDONE, PLAN, RELATED, RELATED_NAME, load_comparison

NOTEBOOKS = sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb"))
LONGEST_CELL = 24


def read(name: str) -> NotebookNode:
    return nbformat.read(paths.NOTEBOOKS / f"{name}.ipynb", as_version=4)


def code(name: str) -> list[NotebookNode]:
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def figures_of(name: str) -> list[str]:
    source = "\n".join(cell.source for cell in code(name))
    return re.findall(r'save_figure\(.*?"(\w+)"\s*(?:\)|,\s*alt=)', source, re.DOTALL)


def test_pages_hold_the_generated_tables() -> None:
    for page, row in zip(report.PAGES, ("| deepcf (last epoch) |", "| step, beside"), strict=True):
        text = (paths.ROOT / page).read_text(encoding="utf-8")
        assert report.with_tables(text) == text, "run: python -m dlcf.notebook.report"
        assert row in text


def test_every_model_is_described() -> None:
    text = (paths.ROOT / "docs" / "using.md").read_text(encoding="utf-8")
    for name in available():
        assert f"| `{name}` |" in text, f"{name} is missing from the table of models"


def test_links_of_the_documents_lead_somewhere() -> None:
    pages = [f"docs/{path.name}" for path in (paths.ROOT / "docs").glob("*.md")]
    for document in ("README.md", "CONTRIBUTING.md", "figures/README.md", *pages):
        path = paths.ROOT / document
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{document}: {target}"


def test_the_readme_names_every_notebook() -> None:
    readme = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    assert NOTEBOOKS
    assert set(re.findall(r"notebooks/(\d\w+)\.ipynb\)", readme)) == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
class TestNotebook:
    def test_it_was_executed_from_top_to_bottom(self, name: str) -> None:
        nbformat.validate(read(name))
        counts = [cell.execution_count for cell in code(name)]
        assert counts == list(range(1, len(counts) + 1))
        for cell in code(name):
            for output in cell.outputs:
                assert output.output_type != "error"
                assert output.get("name") != "stderr", output["text"]

    def test_nothing_in_it_changes_by_itself(self, name: str) -> None:
        notebook = read(name)
        assert set(notebook.metadata) == {"kernelspec", "language_info"}
        for cell in notebook.cells:
            assert set(cell.metadata) <= {"jupyter", "tags"}
        text = (paths.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
        assert str(paths.ROOT) not in text and str(Path.home()) + "/" not in text
        assert "application/vnd.jupyter.widget" not in text

    def test_its_parameters_are_few_and_plain(self, name: str) -> None:
        parameters = read_parameters(name)
        assert 1 <= len(parameters) <= 8
        cell = code(name)[0]
        assert "parameters" in cell.metadata.get("tags", [])
        assert all("#" in line for line in cell.source.splitlines())
        for key, value in parameters.items():
            assert key.isupper() and type(value) in (str, int, float, bool)

    def test_it_explains_before_it_computes(self, name: str) -> None:
        cells = read(name).cells
        assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
        prose = sum(cell.cell_type == "markdown" for cell in cells)
        assert prose >= 0.3 * len(cells)
        for cell in code(name):
            assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source
            ast.parse(cell.source)

    def test_it_ends_by_recording_its_numbers(self, name: str) -> None:
        assert code(name)[-1].source.splitlines()[-1].startswith("run.record(")
        kept = json.loads((paths.RESULTS / f"{name}.json").read_text())
        assert kept["parameters"] == read_parameters(name)
        assert kept["numbers"]

    def test_its_figures_are_there(self, name: str) -> None:
        assert figures_of(name)
        for figure in figures_of(name):
            assert (paths.FIGURES / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
            assert (paths.FIGURES / f"{figure}.png").read_bytes().startswith(b"\x89PNG")


def test_every_figure_has_one_owner_and_a_place_in_the_index() -> None:
    owners = {figure: name for name in NOTEBOOKS for figure in figures_of(name)}
    assert len(owners) == sum(len(figures_of(name)) for name in NOTEBOOKS)
    assert {path.stem for path in paths.FIGURES.glob("*.p*")} == set(owners)
    index = (paths.FIGURES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\(\1\.png\) \| \[(\w+)\]", index, re.MULTILINE)
    assert dict(rows) == owners


def test_every_result_has_its_notebook() -> None:
    # Of the studies; make bench depends on the machine.
    others = {"comparison", "comparison-ml-100k", "comparison-related", "replication"}
    others |= {"ablation", "components", "prequential", "related", "tuning"}
    found = {path.stem for path in paths.RESULTS.glob("*.json")} - {"bench"}
    assert found == set(NOTEBOOKS) | others


def test_the_comparison_is_over_five_seeds_and_all_models() -> None:
    comparison = load_comparison()
    assert len(comparison["provenance"]["seeds"]) >= 5
    assert comparison["provenance"]["uncommitted changes"] is False
    assert set(comparison["splits"]) == {"random", "user-temporal", "global-temporal"}
    for how, part in comparison["splits"].items():
        names = {re.sub(r",.*| \(.*", "", name) for name in part["models"]}
        left_out = RELATED.keys() | (OUTDONE if how == "global-temporal" else set())
        assert names == set(available()) - left_out
    related = load_comparison(paths.RESULTS / RELATED_NAME)
    assert len(related["provenance"]["seeds"]) >= 5
    assert related["provenance"]["uncommitted changes"] is False
    beside = {"deepcf-plus", "mf", "ials", "ease", "popular", "bias"}
    for how in ("random", "user-temporal"):
        assert related["splits"][how]["models"].keys() >= RELATED.keys() | beside
        # Both studies fitted these, with the same seeds.
        for model in beside - {"deepcf-plus"}:
            ours, theirs = (c["splits"][how]["models"][model] for c in (comparison, related))
            assert ours["rmse"] == theirs["rmse"] and ours["full"] == theirs["full"]


def test_the_best_model_meets_its_targets() -> None:
    for how, error, ndcg in (("random", 0.800, 0.310), ("user-temporal", 0.838, 0.110)):
        ours = load_comparison()["splits"][how]["models"]["deepcf-plus"]
        assert ours["rmse"][0] <= error and ours["full"]["ndcg"][0] >= ndcg
    small = load_comparison(paths.RESULTS / "comparison-ml-100k.json")["splits"]["random"]["models"]
    assert all(small["deepcf-plus"]["rmse"][0] <= values["rmse"][0] for values in small.values())


def test_defaults_are_among_the_trials_of_the_tuning() -> None:
    record = json.loads((paths.RESULTS / "tuning.json").read_text())
    tunable = {name for name in available() if make(name).hyper_parameters()}
    assert record.keys() == tunable, "run: dlcf tune MODEL --try '{}'"
    for name, entry in record.items():
        if name == "deepcf":
            continue  # its defaults are the paper's; the trials are of its ranking output
        default = make(name).config
        tried = [{**default, **trial["config"]} for trial in entry["trials"]]
        assert default in tried, f"{name}: the default was never tried"
        assert all(trial["validation"] for trial in entry["trials"])


def test_every_related_system_is_in_the_plan_of_its_comparison() -> None:
    of_room = {n for n in available() if type(make(n)).__module__.startswith("dlcf.related.")}
    assert {entry["model"] for entry in RELATED.values()} == of_room
    assert not RELATED.keys() & PLAN.keys()


def test_readme_puts_each_model_into_its_group() -> None:
    groups: dict[str, set[str]] = {}
    for row in report.comparison_table().splitlines()[2:]:
        name = row.split("|")[1].strip()
        if name.startswith("**"):
            found = groups.setdefault(name.strip("*"), set())
        else:
            found.add(name)
    assert list(groups) == list(report.GROUPS)
    ours, paper, related, baselines = groups.values()
    assert related == RELATED.keys()
    assert paper == {name for name in ours | paper if not name.startswith("deepcf-plus")}
    assert {"mf", "ease", "popular", "fm-side"} <= baselines
    assert not any(name.startswith("deepcf") for name in baselines)
