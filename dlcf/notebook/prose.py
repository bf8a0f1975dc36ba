"""Numbers in prose, held to `results/`: ``dlcf prose`` refreshes those of notebooks and README.

A number that was computed is followed by a comment that names its value, which no page shows::

    an RMSE of 0.864<!--= comparison/splits/random/models/bias/rmse/0 .3f -->

The name is a file of `results/` without its ending and then keys, as in a JSON pointer (RFC 6901:
a slash within a key is ``~1``); the last word is a format, ``|.3f|`` that of the absolute value.
Any other decimal number is a setting, a definition or somebody else's; ``<!--given-->`` says so.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

from dlcf.runtime import paths

_BOUND = re.compile(r"[-+−]?[\d,]*\.?\d+%?<!--= *(?P<name>.*?) +(?P<format>\S+) *-->")
_MARKED = re.compile(r"[-+−]?[\d,]*\.?\d+%?<!--.*?-->")
_DECIMAL = re.compile(r"(?<![\w.])\d[\d,]*\.\d+%?(?![\w.]*\d)")
# Code, formulas, links' targets and the comments themselves are not prose.
_ASIDE = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$|\]\([^)]*\)|https?://\S+", re.DOTALL
)


def refreshed(text: str, results: Path | None = None) -> str:
    """The text with every bound number as `results/` has it; ValueError where there is none."""

    def value(match: re.Match[str]) -> str:
        found = _look_up(match["name"], results or paths.RESULTS)
        form = match["format"]
        if form[0] == form[-1] == "|":
            found, form = abs(found), form.strip("|")
        number = format(found, form).replace("-", "−")
        return number + match[0][match[0].index("<!--") :]

    return _BOUND.sub(value, text)


def unbound(text: str) -> list[str]:
    """Decimal numbers of the prose that neither name a result nor are said to be given."""
    return _DECIMAL.findall(_ASIDE.sub(" ", _MARKED.sub(" ", text)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="dlcf prose", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if numbers drifted")
    check = parser.parse_args(arguments).check
    pages = [paths.ROOT / "README.md", *sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb"))]
    try:
        drifted = [path for path in pages if _refresh(path, write=not check)]
    except ValueError as error:
        parser.error(str(error))
    for path in drifted:
        print(f"{path.name}: {'numbers differ from results/' if check else 'refreshed'}")
    return int(check and bool(drifted))


def _refresh(path: Path, write: bool) -> bool:
    """Whether a page held other numbers."""
    old = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        new = refreshed(old)
    else:
        notebook = nbformat.reads(old, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = refreshed(cell.source)
        new = nbformat.writes(notebook) + "\n"
    if write and new != old:
        paths.write_atomically(path, new)
    return new != old


@functools.cache
def _read(path: Path, changed: int) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _look_up(name: str, results: Path) -> Any:
    file, *keys = name.split("/")
    path = results / f"{file}.json"
    try:
        found = _read(path, path.stat().st_mtime_ns)
        for key in keys:
            key = key.replace("~1", "/")
            found = found[int(key)] if isinstance(found, list) else found[key]
        return found + 0  # a number: TypeError of anything else
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise ValueError(f"{name!r} names no number in {results.name}/ ({error!r})") from error
