"""Libraries that only some models need, and only to be fitted."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

__all__ = ["import_optional"]


def import_optional(module: str, model: str) -> Any:
    """The module; ImportError that names the model and what to install where it is missing."""
    try:
        with warnings.catch_warnings():
            # myfm imports pkg_resources, which warns of its own end.
            warnings.filterwarnings("ignore", message="pkg_resources", category=UserWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'{model} is fitted with {module.split(".")[0]}: pip install "dlcf[baselines]" '
            f"(importing it failed with: {error})"
        ) from error
