"""Every notebook has the same anatomy: a header, prose that is Markdown, short cells, a footer."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
from ipykernel.ipkernel import IPythonKernel

from dlcf.notebook.prose import unbound
from dlcf.runtime import paths

ALL = sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb"))
HEADER = ("**Question.**", "**Read first.**", "**Minutes.**", "**Contents.**")
FOOTER = ("## What we learned", "## Things to try", "## References")
LONGEST = 30  # lines of a cell of code


@pytest.fixture(params=ALL, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> Any:
    return nbformat.read(request.param, as_version=4)


def prose(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def headings(notebook: Any) -> list[str]:
    text = "\n".join(prose(notebook))
    return re.findall(r"^#+ .*", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)


def images(notebook: Any) -> Iterator[tuple[Any, Any]]:
    """Each image, and the output below it."""
    for cell in code(notebook):
        for output, below in pairwise([*cell.outputs, {}]):
            if "image/png" in output.get("data", {}):
                yield output, below


def test_it_begins_with_a_header(notebook: Any) -> None:
    first = prose(notebook)[0]
    assert notebook.cells[0].cell_type == "markdown"
    found = headings(notebook)
    assert [h for h in found if h.startswith("# ")] == [first.splitlines()[0]]
    places = [first.index(part) for part in HEADER]
    assert places == sorted(places)
    anchors = {re.sub(r"[^\w-]", "", h.lstrip("# ").replace(" ", "-")).lower() for h in found}
    links = re.findall(r"\]\(#([^)]*)\)", first)
    assert len(links) >= 2 and {re.sub(r"[^\w-]", "", x).lower() for x in links} <= anchors


def test_it_ends_with_a_footer(notebook: Any) -> None:
    footer = "\n".join(prose(notebook))
    places = [footer.index(part + "\n") for part in FOOTER]
    assert places == sorted(places)
    assert FOOTER[-1] == [h for h in headings(notebook) if h.startswith("## ")][-1]
    tries = footer[places[1] : places[2]]
    assert re.findall(r"^(\d)\. ", tries, re.MULTILINE) == ["1", "2", "3"]
    references = footer[places[2] :]
    assert "https://doi.org/" in references
    names = [path.name for path in ALL]
    place = names.index(next(p.name for p in ALL if nbformat.read(p, as_version=4) == notebook))
    links = re.findall(r"\]\((\d\w+\.ipynb)\)", references.splitlines()[-1])
    assert links == names[max(place - 1, 0) : place] + names[place + 1 : place + 2]


def test_prose_is_markdown_and_cells_are_short(notebook: Any) -> None:
    for cell in code(notebook):
        assert "Markdown(" not in cell.source, cell.source
        assert len(cell.source.splitlines()) <= LONGEST, cell.source


def test_every_decimal_number_of_the_prose_is_accounted_for(notebook: Any) -> None:
    assert not [number for text in prose(notebook) for number in unbound(text)]


def test_every_image_has_an_alternative_text(notebook: Any) -> None:
    for output, below in images(notebook):
        alt = output.metadata.get("image/png", {}).get("alt", "")
        assert len(alt.split()) >= 8 and output.data["text/plain"] == alt
        assert f"</summary>{html.escape(alt)}</details>" in below["data"]["text/html"]
    for text in prose(notebook):
        assert "![](" not in text


def test_boilerplate_is_folded(notebook: Any) -> None:
    cells = code(notebook)
    assert "parameters" in cells[0].metadata.get("tags", [])
    for cell in cells:
        hidden = "hide-input" in cell.metadata.get("tags", [])
        assert hidden == cell.metadata.get("jupyter", {}).get("source_hidden", False)
        if "experiment.start(" in cell.source or "run.record(" in cell.source:
            assert hidden, cell.source


@pytest.mark.parametrize("page", ALL, ids=lambda path: path.stem)
def test_jupyterlab_saves_it_as_it_is(page: Path) -> None:
    """Its layout and what a kernel tells, or JupyterLab marks it changed as it is opened."""
    text = page.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    assert nbformat.writes(notebook) + "\n" == text
    told = dict(notebook.metadata["language_info"])
    version = told.pop("version")
    kernel = IPythonKernel.language_info
    assert re.fullmatch(r"3\.\d+\.\d+", version)
    assert told == {key: value for key, value in kernel.items() if key != "version"}
