"""The paper's model as it is registered: it explains itself, and says how far to believe that."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dlcf.explanation import Explanation
from dlcf.models.base import Arrays, Interactions
from dlcf.models.deepcf import AttentionNetwork, DeepCF, initialise
from dlcf.models.network import WEIGHTS
from dlcf.runtime.settings import setting
from dlcf.training import Batch, seeded
from dlcf.variants.networks import FaithfulAttentionNetwork, RankingAttentionNetwork, coalitions
from dlcf.variants.shapley import evenly_spread, share_correlation

MOST_MEASURED = 5000  # held-out pairs that the faithfulness of the weights is measured on


@dataclass(kw_only=True, eq=False)
class ExplainedDeepCF(DeepCF):
    """The paper's model with explanations, and two terms that its loss may have besides.

    With its defaults it is :class:`~dlcf.models.deepcf.DeepCF`, weight for weight.

    Parameters
    ----------
    ranking_weight
        Weight of the ranking loss, 0 or more. Where it is positive the network has a second output
        (:class:`RankingAttentionNetwork`) and `score_all` and `recommend` rank by it; `predict` and
        `explain` stay the rating's. The paper has none: it ranks by the rating.
    faithful_weight
        Weight of the loss that pulls the attention weights to the Shapley shares of the two
        embeddings, 0 or more; see :class:`FaithfulAttentionNetwork`. The paper has none.

    All others are those of :class:`~dlcf.models.deepcf.DeepCF`.
    """

    ranking_weight: float = setting(0.0, least=0)
    faithful_weight: float = setting(0.0, least=0)

    def explain(self, user_id: int, movie_id: int, at: float | None = None) -> Explanation:
        """Strength and attention weights of one recommendation.

        The weights are those of :meth:`attention_weights`, labelled by what they are and how
        faithful they measured; for an unknown user or movie the strength is that of the fallback's
        rating.
        """
        pair = pd.DataFrame({"userId": [user_id], "movieId": [movie_id]})
        rating = float(self.predict(pair)[0])
        user_weight, _ = self.attention_weights(pair)[0].tolist()
        _, known_user, _, known_movie = self.positions(pair)
        return Explanation.of_rating(
            user_id,
            movie_id,
            rating,
            self.scale,
            user_weight,
            title=self.title(movie_id),
            known_user=bool(known_user[0]),
            known_movie=bool(known_movie[0]),
            method=self.explanation_method,
            faithfulness=self.faithfulness,
        )

    @property
    def explanation_method(self) -> str:
        """What the two weights of :meth:`explain` are."""
        return "attention trained to be faithful" if self.faithful_weight > 0 else "attention"

    @property
    def faithfulness(self) -> float | None:
        """Spearman's correlation of the user's weight and its Shapley share, in [-1, 1].

        Measured after `fit` on held-out ratings of known users and movies, 5,000 at most: those of
        the validation frame, else the part of train that was held out. None where there were none,
        or the weights or shares are all alike. `dlcf.explain.faithfulness` measures it on other
        pairs, with an interval.
        """
        self._check_fitted()
        return self._faithfulness[self.weights]

    def coalition_values(self, pairs: pd.DataFrame) -> NDArray[np.float64]:
        """Ratings ``(n, 4)`` without both embeddings, with the user's, with the movie's, with both.

        An absent embedding is replaced by the mean of its table, over users or movies of train; the
        last column is the prediction. ValueError where a user or a movie is unknown: it has no
        embedding to leave out.
        """
        return self._coalitions(*self.embedded_pairs(pairs))

    def embedded_pairs(self, pairs: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of the pairs' users and movies; ValueError where one has no embedding."""
        users, known_user, movies, known_movie = self.positions(pairs)
        for column, known in (("userId", known_user), ("movieId", known_movie)):
            if not known.all():
                row = int(np.flatnonzero(~known)[0])
                problem = f"{column} {pairs[column].iloc[row]} is not in train and has no embedding"
                raise ValueError(f"pairs, row {row}: {problem}; leave such rows out")
        return users, movies

    def untrained(self, seed: int = 0) -> ExplainedDeepCF:
        """A copy whose network has fresh initial parameters; all else is the same."""
        self._check_fitted()
        model = copy.copy(self)
        model.network = copy.deepcopy(self.network)
        with seeded(seed, self.torch_device()):
            model.network.apply(initialise)
        model._states = dict.fromkeys(self._states, model.network.state_dict())
        model._faithfulness = dict.fromkeys(self._states)
        return model

    def build_network(self, data: Interactions) -> AttentionNetwork:
        layers = self.embedding_size, self.hidden, self.dropout
        if self.ranking_weight > 0:
            weights = self.ranking_weight, self.faithful_weight
            return RankingAttentionNetwork(data, *weights, self.scale, *layers)
        if self.faithful_weight > 0:
            known = data.n_users, data.n_movies, self.scale, *layers
            return FaithfulAttentionNetwork(*known, faithful_weight=self.faithful_weight)
        return super().build_network(data)

    def _coalitions(self, users: NDArray[Any], movies: NDArray[Any]) -> NDArray[np.float64]:
        device = self.torch_device()
        index = (torch.as_tensor(i, device=device).split(4096) for i in (users, movies))
        values = [coalitions(self.network, *part) for part in zip(*index, strict=True)]
        return torch.cat(values).cpu().double().numpy()

    def _after_training(self, held_out: Batch | None) -> None:
        self._faithfulness: dict[str, float | None] = {}
        for which in WEIGHTS:
            self.network.load_state_dict(self._states[which])
            self._faithfulness[which] = self._measure(held_out)
        self.network.load_state_dict(self._states[self.weights])

    def _measure(self, held_out: Batch | None) -> float | None:
        """See :attr:`faithfulness`."""
        if held_out is None or len(held_out[0]) == 0:
            return None
        rows = torch.from_numpy(evenly_spread(len(held_out[0]), MOST_MEASURED))
        users, movies = (index[rows] for index in held_out[:2])
        values = self._coalitions(users.cpu().numpy(), movies.cpu().numpy())
        with torch.no_grad():
            weight = self.network.attend(users, movies)[0][:, 0].cpu().numpy()
        return share_correlation(weight, values)

    def _extra(self) -> dict[str, Any]:
        return super()._extra() | {"faithfulness": self._faithfulness}

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        super()._restore(state, extra)
        self._faithfulness = extra.get("faithfulness", dict.fromkeys(WEIGHTS))
