"""Libraries that only some models need, and only to be fitted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def optional(library: str, model: str) -> Iterator[None]:
    """Around the import of a library; ImportError that says what to install where it is missing."""
    try:
        with warnings.catch_warnings():
            # myfm imports pkg_resources, which warns of its own end.
            warnings.filterwarnings("ignore", message="pkg_resources", category=UserWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    except ImportError as error:
        raise ImportError(
            f'{model} is fitted with {library}: pip install "dlcf[baselines]" '
            f"(importing it failed with: {error})"
        ) from error
