"""From a recommendation's strength to the chance that the movie is liked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize

from dlcf.analysis.beyond import STRENGTH_BINS, calibration, expected_calibration_error
from dlcf.analysis.statistics import Interval, clustered_interval
from dlcf.explanation import strength_of
from dlcf.models.base import Floats, Index, Recommender

__all__ = ["CalibrationReport", "ChanceOfLiking", "calibrate_strength", "calibration_report"]


@dataclass(frozen=True)
class ChanceOfLiking:
    """A calibrated chance that a movie is rated `threshold` stars or more, given its strength.

    Isotonic regression (Zadrozny and Elkan, 2002): the chance never falls as the strength rises;
    between the means of its steps, `strength` (ascending) and `chance` in [0, 1], it is linear.
    """

    threshold: float
    strength: tuple[float, ...]
    chance: tuple[float, ...]

    def __call__(self, strength: ArrayLike) -> Floats:
        """The chance in [0, 1] of each strength in [0, 1], the same shape."""
        return np.interp(np.asarray(strength, np.float64), self.strength, self.chance)


@dataclass(frozen=True)
class CalibrationReport:
    """Reliability of a strength read as a chance (before) and of the calibrated chance (after).

    The tables are bins of :func:`dlcf.analysis.beyond.calibration`, the errors expected calibration
    errors in [0, 1], and after minus before; 95% by resampling users. A resample adds noise of its
    own, so small errors may lie below their interval.
    """

    before: pd.DataFrame
    after: pd.DataFrame
    error_before: Interval
    error_after: Interval
    difference: Interval


def calibrate_strength(
    model: Recommender, validation: pd.DataFrame, threshold: float = 4.0
) -> ChanceOfLiking:
    """Learn the chance of a rating of `threshold` stars or more from ratings that are held out.

    `model` was fitted without `validation`, or with it for the number of epochs only.
    """
    strength = strength_of(model.predict(validation), model.scale)
    liked = validation["rating"].to_numpy() >= threshold
    cases = pd.DataFrame({"strength": strength, "liked": liked}).groupby("strength")["liked"]
    levels = cases.agg(["mean", "size"])
    fit = optimize.isotonic_regression(levels["mean"].to_numpy(float), weights=levels["size"])
    first = fit.blocks[:-1]  # of each step
    weighted = (levels["size"] * levels.index).to_numpy()
    centre = np.add.reduceat(weighted, first) / fit.weights
    chance = fit.x[first]
    return ChanceOfLiking(float(threshold), tuple(centre.tolist()), tuple(chance.tolist()))


def calibration_report(
    chance: ChanceOfLiking, model: Recommender, test: pd.DataFrame
) -> CalibrationReport:
    """Reliability of strength and chance on ratings that `chance` was not learned from."""
    liked = test["rating"].to_numpy() >= chance.threshold
    before = strength_of(model.predict(test), model.scale)
    after = chance(before)

    def error(values: Floats, rows: Index) -> float:
        return expected_calibration_error(calibration(values[rows], liked[rows], STRENGTH_BINS))

    users = test["userId"]
    return CalibrationReport(
        before=calibration(before, liked, STRENGTH_BINS),
        after=calibration(after, liked, STRENGTH_BINS),
        error_before=clustered_interval(users, lambda rows: error(before, rows)),
        error_after=clustered_interval(users, lambda rows: error(after, rows)),
        difference=clustered_interval(users, lambda rows: error(after, rows) - error(before, rows)),
    )
