"""Execute notebooks headless: ``dlcf run [NOTEBOOK ...] [-p NAME VALUE ...]``."""

from __future__ import annotations

import argparse
import ast
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill

from dlcf.data import resolve_dataset
from dlcf.notebook.experiment import check_parameters, output_folder, read_parameters
from dlcf.notebook.report import HEADLINE, headline_table
from dlcf.runtime import paths

__all__ = ["choose_parameters", "keep_outputs", "main", "run_notebook"]


def run_notebook(notebook: str, parameters: dict[str, Any], output: Path) -> float:
    """Execute a notebook of `notebooks/`, named without its ending; returns the seconds it took.

    Raises
    ------
    ValueError
        A parameter is unknown or has a wrong type; nothing was executed.
    """
    check_parameters(notebook, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    papermill.execute_notebook(
        paths.NOTEBOOKS / f"{notebook}.ipynb",
        output,
        parameters=parameters,
        progress_bar={"disable": None},  # as tqdm decides: shown on a terminal only
        cwd=paths.NOTEBOOKS,
        extra_arguments=["--log-level=CRITICAL"],  # of the kernel, which warns about its transport
    )
    return time.perf_counter() - start


def keep_outputs(executed: Path) -> None:
    """Put an executed notebook in place of the one in `notebooks/`, less what changes by itself.

    Times, papermill's records and widget states go; sources, tags and outputs stay.
    """
    notebook = nbformat.read(executed, as_version=4)
    kernel = notebook.metadata["kernelspec"]
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output["metadata"] = {}
    paths.write_atomically(paths.NOTEBOOKS / executed.name, nbformat.writes(notebook) + "\n")


def choose_parameters(
    notebooks: Sequence[str], given: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What each notebook takes of the parameters given and does not store anyway.

    Where `DATASET` is not given, it is the stored one or what can be had from here instead.

    Raises
    ------
    ValueError
        There is no such notebook, no notebook takes a parameter, or a value has a wrong type.
    """
    known = {name: read_parameters(name) for name in notebooks}
    taken = {name: value for stored in known.values() for name, value in stored.items()}
    unknown = ", ".join(sorted(given.keys() - taken.keys()))
    if unknown:
        raise ValueError(f"no notebook takes {unknown}; they take {', '.join(sorted(taken))}")
    if "DATASET" in taken.keys() - given.keys():
        given = {**given, "DATASET": resolve_dataset(taken["DATASET"])}
    chosen = {}
    for notebook, stored in known.items():
        own = {name: value for name, value in given.items() if name in stored}
        check_parameters(notebook, own)
        chosen[notebook] = {name: value for name, value in own.items() if value != stored[name]}
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="dlcf run", description=__doc__)
    parser.add_argument("notebooks", nargs="*", help="names or paths; all of them by default")
    pair = {"nargs": 2, "metavar": ("NAME", "VALUE")}
    parser.add_argument("-p", "--parameter", action="append", default=[], **pair)
    parser.add_argument("--output", type=Path, default=paths.RUNS, help="default: runs/")
    parser.add_argument("--keep", action="store_true", help="keep the outputs in notebooks/")
    options = parser.parse_args(arguments)
    if options.keep and options.parameter:
        parser.error("--keep is for the stored parameters; leave out -p")
    names = [Path(n).stem for n in options.notebooks]
    names = names or sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9]*.ipynb"))
    try:
        chosen = choose_parameters(names, {n: _value(text) for n, text in options.parameter})
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {name} ...", end=" ", flush=True)
        executed = options.output / f"{name}.ipynb"
        seconds = run_notebook(name, chosen[name], executed)
        if options.keep and not chosen[name]:
            keep_outputs(executed)
        print(f"{seconds:.0f} s", flush=True)
    print(f"\nExecuted notebooks: {options.output}")
    folders = {name: output_folder(name, chosen[name]) for name in names}
    for folder in dict.fromkeys(folders.values()):
        print(f"Figures and results: {folder / 'figures'}, {folder / 'results'}")
    if HEADLINE in folders:
        print(f"\n{headline_table(folders[HEADLINE] / 'results' / f'{HEADLINE}.json')}")
    return 0


def _value(text: str) -> Any:
    """Read as papermill's own -p does: a Python literal where it is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


if __name__ == "__main__":
    raise SystemExit(main())
