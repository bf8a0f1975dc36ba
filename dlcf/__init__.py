"""Deep learning collaborative filtering on MovieLens, measured honestly."""

from dlcf.data import load_movies, load_ratings
from dlcf.evaluation import evaluate
from dlcf.models import load_model, make
from dlcf.splits import split

__all__ = ["evaluate", "load_model", "load_movies", "load_ratings", "make", "split"]
__version__ = "0.1.0"
