"""SVD++: matrix factorisation with implicit feedback (Koren, 2008)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dlcf.models.base import Interactions
from dlcf.models.mf import FactorNetwork, MatrixFactorization
from dlcf.runtime.settings import setting
from dlcf.variants.networks import rated_movies


class ImplicitFactorNetwork(FactorNetwork):
    """SVD++: ``p_u`` becomes ``p_u + |N(u)|^-1/2 sum_{j in N(u)} y_j`` (Koren, 2008, eq. 15).

    N(u) is the set of movies that the user rated in training, whatever the ratings. The penalty
    is on the sum, which is the vector that predicts.
    """

    rated_start: Tensor
    rated_movie: Tensor

    def __init__(self, data: Interactions, factors: int, *penalties: float) -> None:
        super().__init__(data, factors, *penalties)
        self.implicit_factors = nn.Embedding(data.n_movies, factors)
        nn.init.normal_(self.implicit_factors.weight, std=0.05)
        rated = data.matrix()
        self.register_buffer("rated_start", torch.as_tensor(rated.indptr, dtype=torch.int64))
        self.register_buffer("rated_movie", torch.as_tensor(rated.indices, dtype=torch.int64))

    def users(self, users: Tensor) -> Tensor:
        # The implicit part is computed once for each distinct user of the batch.
        distinct, position = torch.unique(users, return_inverse=True)
        movies, first, count = rated_movies(self.rated_start, self.rated_movie, distinct)
        total = nn.functional.embedding_bag(movies, self.implicit_factors.weight, first, mode="sum")
        normed = total / count.clamp(min=1).sqrt()[:, None]
        # Not normed[position] or index_select, whose gradients several threads, or CUDA's, sum in
        # whatever order they come.
        return self.user_factors(users) + nn.functional.embedding(position, normed)


@dataclass(kw_only=True, eq=False)
class SVDPlusPlus(MatrixFactorization):
    """SVD++: matrix factorisation with the user's set of rated movies as implicit feedback.

    Parameters are those of :class:`~dlcf.models.mf.MatrixFactorization`.
    """

    name: ClassVar[str] = "svdpp"
    regularization: float = setting(0.14, least=0)
    batch_size: int = setting(1024, least=1)
    learning_rate: float = setting(3e-3, above=0)

    def build_network(self, data: Interactions) -> ImplicitFactorNetwork:
        penalties = self.regularization, self.bias_regularization
        return ImplicitFactorNetwork(data, self.factors, *penalties)
