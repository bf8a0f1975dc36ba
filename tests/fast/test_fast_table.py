"""The table of the fast room tells what is: lines of its files, numbers of the bench."""

from __future__ import annotations

import json
import re
from pathlib import Path

import dlcf.fast
from dlcf.runtime.paths import RESULTS

ROOM = Path(dlcf.fast.__file__).parent
LIMIT = 1380


def rows() -> list[list[str]]:
    """The cells of each row, without the header."""
    lines = (ROOM / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    return cells[2:]


def test_lines_are_those_of_the_files() -> None:
    named = set()
    for _, name, lines, _ in rows():
        path = ROOM / name.strip("`")
        n_lines = len(path.read_text(encoding="utf-8").splitlines())
        assert abs(int(lines) - n_lines) <= 0.15 * n_lines, f"{name} has {n_lines} lines"
        named.add(path.name)
    assert named == {path.name for path in ROOM.glob("*.py")} - {"__init__.py"}
    total = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in ROOM.glob("*.py"))
    assert total <= LIMIT


def measured() -> list[float]:
    """All numbers of the entries that the table is about, seconds in milliseconds too."""
    bench = json.loads((RESULTS / "bench.json").read_text(encoding="utf-8"))
    numbers: list[float] = []
    for section in ("training", "vocabulary", "ranking"):
        for name, values in bench[section]["entries"].items():
            numbers += [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", name)]
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    numbers += [value, 1e3 * value] if key.endswith("_s") else [value]
    return numbers


def test_numbers_are_those_of_the_bench() -> None:
    numbers = measured()
    quoted = [n for *_, text in rows() for n in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]
    assert len(quoted) >= 10
    for text in quoted:
        digits = len(text.partition(".")[2])
        value = float(text.replace(",", ""))
        unit = 10.0**-digits
        # A hair more than half a unit, for what the record itself was rounded from.
        assert any(abs(n - value) <= 0.5001 * unit for n in numbers), f"{text} is in no entry"


def test_each_file_opens_with_what_it_replaces() -> None:
    for _, name, *_ in rows():
        text = (ROOM / name.strip("`")).read_text(encoding="utf-8")
        paragraphs = text.split('"""')[1].split("\n\n")
        assert re.search(r"replaces?\b", paragraphs[1]), name
