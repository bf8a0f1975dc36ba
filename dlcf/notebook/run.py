"""Execute notebooks headless: ``dlcf run [NOTEBOOK ...] [-p NAME VALUE ...]``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from dlcf.data import DATASETS, DataUnavailableError, resolve_dataset
from dlcf.data.archives import obtain
from dlcf.notebook.experiment import OUTPUT, check_parameters, output_folder, read_parameters
from dlcf.notebook.report import HEADLINE, headline_table
from dlcf.runtime import paths
from dlcf.runtime.parallel import map_in_processes
from dlcf.studies.results import literal


def run_notebook(notebook: str, parameters: dict[str, Any], output: Path) -> float:
    """Execute a notebook of `notebooks/`, named without its ending; returns the seconds it took.

    A terminal shows how far it is, unless another is run beside it. ValueError, before anything is
    executed, is that of :func:`check_parameters`; RuntimeError says which cell failed and why.
    """
    check_parameters(notebook, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    bar = {"desc": notebook, "bar_format": "{desc}: {n} of {total} cells, {elapsed}"}
    try:
        papermill.execute_notebook(
            paths.NOTEBOOKS / f"{notebook}.ipynb",
            output,
            parameters=parameters,
            progress_bar={**bar, "leave": False, "disable": None},  # None: but on a terminal
            cwd=paths.NOTEBOOKS,
            extra_arguments=["--log-level=CRITICAL"],  # the kernel warns about its transport
        )
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        problem = f"{notebook}, cell [{error.exec_count}]: {error.ename}: {error.evalue}"
        raise RuntimeError(f"{problem}; {output} shows where") from None
    return time.perf_counter() - start


def keep_outputs(executed: Path) -> None:
    """Put an executed notebook in place of the one in `notebooks/`, less what changes by itself.

    Times, papermill's records and widget states go; sources, tags, folded cells, outputs and the
    images' alternative texts stay. The file is what JupyterLab would save.
    """
    notebook = nbformat.read(executed, as_version=4)
    kept = ("kernelspec", "language_info")
    notebook.metadata = {key: notebook.metadata[key] for key in kept}
    for cell in notebook.cells:
        kept = ("jupyter", "tags")
        cell.metadata = {key: cell.metadata[key] for key in kept if cell.metadata.get(key)}
        for output in cell.get("outputs", []):
            if "metadata" in output:
                image = output["metadata"].get("image/png", {}).get("alt")
                output["metadata"] = {"image/png": {"alt": image}} if image else {}
    paths.write_atomically(paths.NOTEBOOKS / executed.name, nbformat.writes(notebook) + "\n")


def choose_parameters(
    notebooks: Sequence[str], given: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What each notebook takes of the parameters given and does not store anyway.

    Where `DATASET` is not given, it is the stored one or what can be had from here instead; that of
    a folder becomes absolute; it is on this machine then, or DataUnavailableError says why not.
    ValueError says that there is no such notebook, that none takes a parameter, or what a value
    must be.
    """
    known = {name: read_parameters(name) for name in notebooks}
    taken = {name: value for stored in known.values() for name, value in stored.items()}
    unknown = ", ".join(sorted(given.keys() - taken.keys()))
    if unknown:
        raise ValueError(f"no notebook takes {unknown}; they take {', '.join(sorted(taken))}")
    for notebook, stored in known.items():
        check_parameters(notebook, {name: given[name] for name in given if name in stored})
    if "DATASET" in taken.keys() - given.keys():
        given = {**given, "DATASET": resolve_dataset(taken["DATASET"])}
    elif "DATASET" in given:
        obtain(given["DATASET"], None)
        if given["DATASET"] not in DATASETS:
            given = {**given, "DATASET": str(paths.path(given["DATASET"]).resolve())}
    return {
        notebook: {k: v for k, v in given.items() if k in stored and v != stored[k]}
        for notebook, stored in known.items()
    }


def _execute(job: tuple[str, dict[str, Any], Path, bool]) -> None:
    notebook, parameters, output, keep = job
    clear = "\r\033[K" if sys.stdout.isatty() else ""  # the bar
    print(f"{clear}{notebook} ...", flush=True)
    seconds = run_notebook(notebook, parameters, output)
    if keep and not parameters:
        keep_outputs(output)
    print(f"{clear}{notebook}: {seconds:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="dlcf run", description=__doc__)
    parser.add_argument("notebooks", nargs="*", help="names or paths; all of them by default")
    pair: dict[str, Any] = {"nargs": 2, "metavar": ("NAME", "VALUE")}
    parser.add_argument("-p", "--parameter", action="append", default=[], **pair)
    where = "of the executed notebooks; default: runs/, with other parameters a folder there"
    parser.add_argument("--output", type=paths.path, metavar="FOLDER", help=where)
    parser.add_argument("--keep", action="store_true", help="keep the outputs in notebooks/")
    parser.add_argument("--workers", type=int, default=2, help="notebooks at a time; default: 2")
    options = parser.parse_args(arguments)
    if options.keep and options.parameter:
        parser.error("--keep is for the stored parameters; leave out -p")
    if options.output and options.output.resolve() == paths.NOTEBOOKS.resolve():
        parser.error("--output would replace the notebooks themselves; --keep keeps their outputs")
    names = list(dict.fromkeys(Path(n).stem for n in options.notebooks))
    names = names or sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9]*.ipynb"))
    if not names:
        parser.error(f"no notebooks in {paths.NOTEBOOKS}; run this in a checkout of the repository")
    # The kernels run in notebooks/, where a relative path would be another one.
    for name in ("DLCF_CACHE_DIR", "DLCF_DATA_DIR", OUTPUT):
        if os.environ.get(name):
            os.environ[name] = str(paths.path(os.environ[name]).resolve())
    try:
        chosen = choose_parameters(names, {n: literal(text) for n, text in options.parameter})
    except (ValueError, DataUnavailableError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    folders = {name: output_folder(name, chosen[name]) for name in names}
    executed_in = {n: options.output or (folders[n] if chosen[n] else paths.RUNS) for n in names}
    jobs = [(n, chosen[n], executed_in[n] / f"{n}.ipynb", options.keep) for n in names]
    if min(options.workers, len(jobs)) > 1:
        map_in_processes(_execute, jobs, options.workers, "notebooks")
    else:
        for job in jobs:
            _execute(job)
    print(f"\nExecuted notebooks: {', '.join(map(str, dict.fromkeys(executed_in.values())))}")
    for folder in dict.fromkeys(folders.values()):
        print(f"Figures and results: {folder / 'figures'}, {folder / 'results'}")
    if HEADLINE in folders:
        print(f"\n{headline_table(folders[HEADLINE] / 'results' / f'{HEADLINE}.json')}")
    return 0
