"""What a notebook needs around its story: checked parameters, cached models, kept outputs."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from dlcf.models.base import Recommender
from dlcf.notebook.plots import figure_bytes, use_style
from dlcf.ratings import fingerprint
from dlcf.registry import load_model, make
from dlcf.runtime import paths

__all__ = [
    "Run",
    "check_parameters",
    "code_version",
    "fit_cached",
    "output_folder",
    "read_parameters",
    "start",
]

CHECK = "DLCF_CHECK_RESULTS"
THREADS = "DLCF_THREADS"
OUTPUT = "DLCF_OUTPUT_DIR"


def read_parameters(notebook: str) -> dict[str, Any]:
    """Names and stored values of a notebook's `parameters` cell.

    Parameters
    ----------
    notebook
        File name in `notebooks/`, without its ending.

    Raises
    ------
    ValueError
        There is no such notebook, or it has no cell tagged `parameters`.
    """
    path = paths.NOTEBOOKS / f"{notebook}.ipynb"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in paths.NOTEBOOKS.glob("*.ipynb")))
        raise ValueError(f"no notebook {notebook!r} in {paths.NOTEBOOKS.name}/; there are {known}")
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            return dict(_assignments("".join(cell["source"])))
    raise ValueError(f"{path.name} has no cell tagged 'parameters'")


def check_parameters(notebook: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError where a given parameter is unknown or not of the stored value's type."""
    stored = read_parameters(notebook)
    unknown = sorted(set(given) - set(stored))
    if unknown:
        raise ValueError(
            f"{notebook} has no parameter {', '.join(unknown)}; it takes {', '.join(stored)}"
        )
    for name, value in given.items():
        wanted = type(stored[name])
        is_type = type(value) is wanted or (wanted is float and type(value) is int)
        if not is_type:
            raise ValueError(
                f"{notebook}: {name} is {value!r}; give {wanted.__name__}, such as {stored[name]!r}"
            )


def start(notebook: str, namespace: Mapping[str, Any]) -> Run:
    """Begin a notebook: check what papermill injected, fix the thread count, set the style.

    Parameters
    ----------
    notebook
        The notebook's file name without its ending.
    namespace
        The notebook's ``globals()``, right after its parameters.

    Returns
    -------
    Run
        Where figures, results and trained models of this run go.
    """
    injected: dict[str, Any] = {}
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):
            injected |= dict(_assignments(source))
    check_parameters(notebook, injected)
    stored = read_parameters(notebook)
    # Sums of floats depend on how many threads share them, so a fixed count gives the same numbers
    # on a machine of any size; batches of 64 rows are too small to gain from a second thread.
    torch.set_num_threads(int(os.environ.get(THREADS, "1")))
    use_style()
    return Run(notebook, {name: namespace[name] for name in stored}, stored)


def output_folder(
    notebook: str, parameters: Mapping[str, Any], stored: Mapping[str, Any] | None = None
) -> Path:
    """Folder whose `figures/` and `results/` a run with these parameters writes.

    The repository itself where all have their stored values, else a folder in `runs/` that is
    named after those which have not; the environment variable DLCF_OUTPUT_DIR names another.
    """
    if OUTPUT in os.environ:
        return Path(os.environ[OUTPUT])
    stored = read_parameters(notebook) if stored is None else stored
    changed = [f"{k}={v}" for k, v in sorted(parameters.items()) if v != stored[k]]
    if not changed:
        return paths.ROOT
    return paths.RUNS / re.sub(r"[^\w=.+-]", "_", "-".join([notebook, *changed]))


class Run:
    """One execution of a notebook.

    With the stored parameters, figures and results go to `figures/` and `results/`; with any
    other, to a folder of their own under `runs/`, so that an experiment never replaces them.
    """

    def __init__(
        self, notebook: str, parameters: dict[str, Any], stored: Mapping[str, Any]
    ) -> None:
        self.notebook = notebook
        self.parameters = parameters
        self.is_default = parameters == stored
        self.folder = output_folder(notebook, parameters, stored)

    def fit(
        self, name: str, train: pd.DataFrame, movies: pd.DataFrame | None = None, **settings: Any
    ) -> Recommender:
        """A model by name, from the cache where it was fitted before; see :func:`fit_cached`."""
        return fit_cached(name, train, movies=movies, **settings)

    def save_figure(self, figure: Figure, name: str) -> None:
        """Write `figures/NAME.pdf` and `.png`, show the figure below the cell, and close it."""
        for ending in ("pdf", "png"):
            content = figure_bytes(figure, ending)
            if not _checking():
                paths.write_atomically(self.folder / "figures" / f"{name}.{ending}", content)
        plt.show()
        plt.close(figure)

    def record(self, numbers: Mapping[str, Any], tolerance: float = 1e-6) -> None:
        """Write the notebook's numbers to `results/NOTEBOOK.json`, with the parameters.

        Where the environment variable DLCF_CHECK_RESULTS is set and the parameters are the stored
        ones, nothing is written: the numbers are compared with the file.

        Parameters
        ----------
        numbers
            Nested mappings and lists of numbers and texts; floats are kept to 6 decimals.
        tolerance
            Largest absolute difference that the comparison accepts. Closed-form numbers keep the
            default; those of trained networks differ between processors and need room for it.

        Raises
        ------
        AssertionError
            The comparison failed; the message lists each number that differs.
        """
        path = self.folder / "results" / f"{self.notebook}.json"
        content = {"parameters": self.parameters, "numbers": _rounded(numbers)}
        if _checking() and self.is_default:
            kept = json.loads(path.read_text(encoding="utf-8"))
            drift = list(_differences(kept, content, tolerance))
            assert not drift, f"{path.name} does not hold what the notebook computes:\n" + (
                "\n".join(drift)
            )
        elif not _checking():
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            paths.write_atomically(path, text)
        print(f"results/{path.name}: {sum(1 for _ in _leaves(content['numbers']))} values")


def fit_cached(
    name: str,
    train: pd.DataFrame,
    validation: pd.DataFrame | None = None,
    movies: pd.DataFrame | None = None,
    **settings: Any,
) -> Recommender:
    """Fit a model, or load it where the same fit was done before.

    The same means: same hyper-parameters, same ratings and titles, same source of the package,
    same torch, threads and device; anything else trains anew.
    """
    model = make(name, **settings)
    description = {
        "name": name,
        "config": model.config,
        "train": fingerprint(train),
        "validation": None if validation is None else fingerprint(validation),
        "movies": None if movies is None else _frame_digest(movies),
        "code": code_version(type(model)),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.is_available(),
    }
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    folder = paths.CACHE / "models" / f"{name}-{digest[:20]}"
    if (folder / "model.json").is_file():
        return load_model(folder)
    model.fit(train, validation, movies)
    model.save(folder)
    return model


@lru_cache
def code_version(*parts: type[Recommender] | str) -> str:
    """Digest of source files: a name stands for its module, a class for all that it is made of.

    That is the modules of the class and of its bases, `data`, and what of this package they use.
    """
    modules: set[str] = set()
    for part in parts:
        if isinstance(part, str):
            modules.add(f"dlcf.{part}")
        else:
            modules |= _closure({"dlcf.data", *(cls.__module__ for cls in part.__mro__)})
    digest = hashlib.sha256()
    for module in sorted(modules):
        source = Path(str(importlib.import_module(module).__file__)).read_bytes()
        digest.update(module.encode() + b"\0" + source)
    return digest.hexdigest()


def _closure(modules: set[str]) -> set[str]:
    """The modules of this package among `modules`, and those whose names they hold, and so on."""
    found: set[str] = set()
    waiting = {name for name in modules if name.startswith("dlcf.")}
    while waiting:
        name = waiting.pop()
        found.add(name)
        for value in vars(importlib.import_module(name)).values():
            used = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
            if isinstance(used, str) and used.startswith("dlcf.") and used not in found:
                waiting.add(used)
    return found


def _frame_digest(frame: pd.DataFrame) -> str:
    return hashlib.sha256(frame.to_json(orient="split").encode()).hexdigest()


def _assignments(source: str) -> Iterator[tuple[str, Any]]:
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            yield statement.targets[0].id, ast.literal_eval(statement.value)


def _checking() -> bool:
    return os.environ.get(CHECK, "") not in ("", "0")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return round(value, 6) if isinstance(value, float) else value


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}[{index}]")
    else:
        yield name, value


def _differences(kept: Any, found: Any, tolerance: float) -> Iterator[str]:
    old, new = dict(_leaves(kept)), dict(_leaves(found))
    for name in old.keys() | new.keys():
        if name not in old or name not in new:
            yield f"{name}: only in {'the file' if name in old else 'the notebook'}"
        elif isinstance(old[name], float) and isinstance(new[name], (int, float)):
            if not abs(old[name] - new[name]) <= tolerance:
                yield f"{name}: {old[name]} in the file, {new[name]} in the notebook"
        elif old[name] != new[name]:
            yield f"{name}: {old[name]!r} in the file, {new[name]!r} in the notebook"
