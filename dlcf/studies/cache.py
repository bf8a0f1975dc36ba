"""What was computed before, and the digests of data, code and libraries that name them."""

from __future__ import annotations

import ast
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from functools import lru_cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock

from dlcf.models.base import Recommender
from dlcf.ratings import fingerprint
from dlcf.registry import load_model, make
from dlcf.runtime import paths
from dlcf.runtime.environment import library_versions
from dlcf.runtime.saving import read_folder, write_folder
from dlcf.training import FASTER_STEPS, pick_device

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "numpy", "scipy", "pandas", "numba", "implicit", "myfm")


def kept(
    folder: Path,
    compute: Callable[[], Any],
    load: Callable[[Path], Any] = read_folder,
    save: Callable[[Any, Path], Any] = lambda found, folder: write_folder(folder, *found),
) -> Any:
    """What `folder` holds, else what `compute` returns, which is then kept there.

    By default that is arrays and a description in JSON. Of processes that want the same at once,
    one computes. A warning says where what was kept is damaged, or the new cannot be kept.
    """
    with ExitStack() as lock:
        with suppress(OSError):  # a cache that cannot be written can still be read
            lock.enter_context(FileLock(folder / ".fit.lock"))
        try:
            return load(folder)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            warnings.warn(f"computed anew, because {error}", stacklevel=3)
        found = compute()
        try:
            save(found, folder)
        except (OSError, ValueError) as error:
            warnings.warn(f"what was computed is not kept: {error}", stacklevel=3)
    return found


def fit_cached(
    name: str,
    train: pd.DataFrame,
    validation: pd.DataFrame | None = None,
    movies: pd.DataFrame | None = None,
    **settings: Any,
) -> Recommender:
    """Fit a model, or load it where the same fit was done before; see `kept` and `fit_key`."""
    model = make(name, **settings)
    folder = paths.CACHE / "models" / f"{name}-{fit_key(model, train, validation, movies)[:20]}"
    return kept(folder, lambda: model.fit(train, validation, movies), load_model, Recommender.save)


def fit_key(
    model: Recommender,
    train: pd.DataFrame,
    validation: pd.DataFrame | None = None,
    movies: pd.DataFrame | None = None,
) -> str:
    """Digest of all that the result of a fit depends on.

    That is the hyper-parameters, the frames, the package's source, the libraries that compute,
    the number of threads, the device, and which networks have a faster training step.
    """
    frames = {"train": train, "validation": validation, "movies": movies}
    description = {
        "name": model.name,
        "config": model.config,
        "frames": {key: None if f is None else fingerprint(f) for key, f in frames.items()},
        "code": code_version(type(model)),
        "libraries": library_versions(LIBRARIES),
        "threads": torch.get_num_threads(),
        "device": str(pick_device(getattr(model, "device", "cpu"))),
        "faster steps": sorted(network.__qualname__ for network in FASTER_STEPS),
    }
    return digest_of(description)


def digest_of(description: dict[str, Any]) -> str:
    """SHA-256 of JSON values, whatever their order."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


@lru_cache
def code_version(*parts: type[Recommender] | str, package: Path = PACKAGE) -> str:
    """Digest of source files of the package; ValueError where there is no module of a name.

    A name such as ``"analysis.beyond"`` stands for that module alone. A class stands for all that
    it is made of: its own modules and those of its bases, the data room, training and the whole of
    `fast`, which comes in by hooks, with everything of the package that these import.
    """
    modules = {f"dlcf.{part}" for part in parts if isinstance(part, str)}
    classes = [part for part in parts if not isinstance(part, str)]
    if classes:
        own = {base.__module__ for part in classes for base in part.__mro__}
        files = (package / "fast").glob("*.py")
        fast = {f"dlcf.fast.{file.stem}".removesuffix(".__init__") for file in files}
        modules |= import_closure(own | fast | {"dlcf.data", "dlcf.training"}, package)
    digest = hashlib.sha256()
    for module in sorted(modules):
        path = _source(module, package)
        if path is None:
            raise ValueError(f"no module {module} in {package}; name one such as 'analysis.beyond'")
        content = path.read_bytes()
        digest.update(f"{module} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def import_closure(modules: Iterable[str], package: Path = PACKAGE) -> set[str]:
    """The modules of the package among `modules`, and those that they import, and so on.

    Imports are read from the source, wherever in a file they stand. The package's own
    ``__init__`` does not count: it computes nothing and names every room.
    """
    found: set[str] = set()
    waiting = set(modules)
    while waiting:
        module = waiting.pop()
        path = _source(module, package)
        if path is not None:
            found.add(module)
            waiting |= _imported(module, path) - found
    return found


def _source(module: str, package: Path) -> Path | None:
    """The file of a module; None where the name is not that of a module in the package."""
    if not module.startswith("dlcf."):
        return None
    path = package.joinpath(*module.split(".")[1:])
    files = path / "__init__.py", path.with_name(f"{path.name}.py")
    return next((file for file in files if file.is_file()), None)


def _imported(module: str, path: Path) -> set[str]:
    """What a module may import: every name imported from a module may be a module itself."""
    parent = module.rpartition(".")[0]
    room = module if path.name == "__init__.py" else parent
    names = {parent}  # its __init__ runs first
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), room)
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return names
