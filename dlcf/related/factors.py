"""Factors of users or movies by least squares, with what else is known of each as a prior."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from dlcf.models.base import Floats

_ROWS_AT_ONCE = 512


def solve_factors(
    entries: sparse.csr_matrix, others: Floats, weight: float, common: Floats, prior: Floats
) -> Floats:
    """The x_n of ``(common + weight sum_m y_m y_m^T) x_n = sum_m e_nm y_m + prior_n``, all n.

    The sums are over the stored `entries` e_nm of row n; `others` holds the y_m, ``(m, k)``,
    `common` is ``(k, k)``, `prior` ``(n, k)``. What is equal for all rows,
    such as ``b sum_m y_m y_m^T`` over *all* m, belongs into `common`.
    """
    solved = np.empty((entries.shape[0], len(common)))
    right = entries @ others + prior
    for first in range(0, len(solved), _ROWS_AT_ONCE):
        rows = slice(first, min(first + _ROWS_AT_ONCE, len(solved)))
        systems = np.repeat(common[None], rows.stop - first, axis=0)
        for n in range(first, rows.stop):
            known = others[entries.indices[slice(*entries.indptr[n : n + 2])]]
            systems[n - first] += weight * known.T @ known
        solved[rows] = np.linalg.solve(systems, right[rows, :, None])[:, :, 0]
    return solved
