"""MovieLens' ratings, movies and tags.

`archives` finds, fetches and verifies the data; `reading` makes frames of it. Begin with
:func:`load_ratings`.
"""

from dlcf.data.archives import (
    DATASETS,
    DataUnavailableError,
    fetch_ml100k_from_package_index,
    is_available,
    resolve_dataset,
)
from dlcf.data.reading import load_movies, load_ratings, load_tags

__all__ = ["DATASETS", "DataUnavailableError", "fetch_ml100k_from_package_index", "is_available"]
__all__ += ["load_movies", "load_ratings", "load_tags", "resolve_dataset"]
