"""Numbers in prose: bound to results, refreshed, and none left over."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from dlcf.notebook import prose
from dlcf.runtime import paths

RESULT = {
    "models": {"deepcf (best epoch)": {"rmse": [0.87149, 0.86, 0.88]}},
    "a/b": -0.5,
    "n": 1234,
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "study.json").write_text(json.dumps(RESULT))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "form", "shown"),
    [
        ("study/models/deepcf (best epoch)/rmse/0", ".3f", "0.871"),
        ("study/models/deepcf (best epoch)/rmse/0", ".1%", "87.1%"),
        ("study/a~1b", "+.2f", "−0.50"),
        ("study/a~1b", "|.2f|", "0.50"),
        ("study/n", ",", "1,234"),
    ],
)
@pytest.mark.parametrize("old", ["9", "0.1", "−3.25", "12,000", "5%", "+0.7"])
def test_a_number_takes_the_value_it_names(
    name: str, form: str, shown: str, old: str, results: Path
) -> None:
    text = f"an error of {old}<!--= {name} {form} -->, and 7 more"
    new = f"an error of {shown}<!--= {name} {form} -->, and 7 more"
    assert prose.refreshed(text, results) == new
    assert prose.refreshed(new, results) == new


def test_two_numbers_of_a_line_are_two(results: Path) -> None:
    text = "1<!--= study/n d -->, 2<!--= study/a~1b .1f -->"
    assert prose.refreshed(text, results) == "1234<!--= study/n d -->, −0.5<!--= study/a~1b .1f -->"


@pytest.mark.parametrize("name", ["study/nothing", "none/n", "study/models", "study/n/0", "study"])
def test_what_names_no_number_is_an_error(name: str, results: Path) -> None:
    with pytest.raises(ValueError, match="names no number"):
        prose.refreshed(f"1<!--= {name} .3f -->", results)


def test_decimal_numbers_that_name_nothing_are_found() -> None:
    text = (
        "0.5 of 3, then 1.25%, not `0.1`, $0.2$, 0.3<!--given-->, 0.4<!--= study/n .1f -->, "
        "[x](https://doi.org/10.1145/2827872), version 1.2.3; 4.0."
    )
    assert prose.unbound(text) == ["0.5", "1.25%", "4.0"]


def test_the_command_checks_and_refreshes(
    tmp_path: Path,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    notebook = nbformat.v4.new_notebook()
    text = "{}<!--= study/n d -->"
    notebook.cells = [nbformat.v4.new_markdown_cell(text.format(5)), nbformat.v4.new_code_cell("5")]
    page = tmp_path / "notebooks" / "01_page.ipynb"
    page.parent.mkdir()
    page.write_text(nbformat.writes(notebook) + "\n")
    (tmp_path / "README.md").write_text(text.format(1234))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "NOTEBOOKS", page.parent)
    monkeypatch.setattr(paths, "RESULTS", results)
    before = page.read_text()
    assert prose.main(["--check"]) == 1 and page.read_text() == before
    assert capsys.readouterr().out == "01_page.ipynb: numbers differ from results/\n"
    assert prose.main([]) == 0
    cells = nbformat.read(page, as_version=4).cells
    assert [cell.source for cell in cells] == [text.format(1234), "5"]
    assert prose.main(["--check"]) == 0


def test_the_numbers_of_the_pages_are_those_of_results() -> None:
    assert prose.main(["--check"]) == 0
