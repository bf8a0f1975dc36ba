"""MovieLens' ratings, movies and tags: where archives are found, verified and read.

Begin with :func:`load_ratings`; `archives` finds and fetches, `reading` makes frames.
"""

from dlcf.data.archives import (
    DATASETS,
    DataUnavailableError,
    is_available,
    load_movies,
    load_ratings,
    load_tags,
    resolve_dataset,
)

__all__ = [
    "DATASETS",
    "DataUnavailableError",
    "is_available",
    "load_movies",
    "load_ratings",
    "load_tags",
    "resolve_dataset",
]
