"""Deep learning collaborative filtering on MovieLens, measured honestly.

The public names are loaded when they are first used, so that ``import dlcf`` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlcf.data import load_movies, load_ratings
    from dlcf.evaluation import evaluate, prequential
    from dlcf.registry import available, load_model, make
    from dlcf.splits import split
    from dlcf.studies.search import make_tuned

__version__ = "0.1.0"
__all__ = ["available", "evaluate", "load_model", "load_movies", "load_ratings", "make"]
__all__ += ["make_tuned", "prequential", "split"]

_HOME = {
    "available": "registry",
    "evaluate": "evaluation",
    "load_model": "registry",
    "load_movies": "data",
    "load_ratings": "data",
    "make": "registry",
    "make_tuned": "studies.search",
    "prequential": "evaluation",
    "split": "splits",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dlcf' has no attribute {name!r}")
    return getattr(import_module(f"dlcf.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
