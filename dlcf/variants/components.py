"""The paper's network with one decision of its design changed, to see what that one is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dlcf.models.base import Interactions
from dlcf.models.deepcf import AttentionNetwork, DeepCF, initialise
from dlcf.models.network import WEIGHTS
from dlcf.runtime.settings import setting
from dlcf.training import Batch, TrainingConfig, mean_squared_error

ATTENTION = ("two weights", "none", "gates", "per dimension")


class UnattendedNetwork(AttentionNetwork):
    """Without attention: both weights are 1/2, a factor that the batch norm behind takes out."""

    def __init__(self, *layers: Any) -> None:
        super().__init__(*layers)
        nn.init.zeros_(self.attention.weight)
        self.attention.requires_grad_(False)


class DecayedNetwork(AttentionNetwork):
    """With weight decay: Adam's, an L2 penalty on every parameter at every step."""

    decay = 0.0

    def optimizer(self, config: TrainingConfig) -> torch.optim.Optimizer:
        own, rate = self.parameters(), config.learning_rate
        return torch.optim.Adam(own, rate, weight_decay=self.decay, fused=True)


class ComponentNetwork(AttentionNetwork):
    """With other attention, or without batch norm.

    Attention by ``"gates"`` is a sigmoid for each embedding, so that the two weights need not sum
    to 1; ``"per dimension"`` it is two weights that do, in each dimension.
    """

    def __init__(self, *layers: Any, attention: str, batch_norm: bool) -> None:
        super().__init__(*layers)
        self.kind = attention
        if attention == "per dimension":
            size = self.user_embedding.embedding_dim
            self.attention = nn.Linear(2 * size, size)
            initialise(self.attention)
        if not batch_norm:
            kept = [layer for layer in self.tower if not isinstance(layer, nn.BatchNorm1d)]
            self.tower = nn.Sequential(*kept)

    def weigh(self, user: Tensor, movie: Tensor) -> Tensor:
        if self.kind == "two weights":
            return super().weigh(user, movie)
        gate = torch.sigmoid(self.attention(torch.cat([user, movie], dim=1)))
        return gate if self.kind == "gates" else torch.cat([gate, 1 - gate], dim=1)

    def rate(self, weight: Tensor, user: Tensor, movie: Tensor) -> Tensor:
        own, other = weight.chunk(2, dim=1)  # (n, 1) or (n, embedding_size) each
        return super().rate(torch.ones_like(weight[:, :2]), own * user, other * movie)


@dataclass(kw_only=True, eq=False)
class ComponentDeepCF(DeepCF):
    """The paper's model; each of its own settings changes one thing.

    Parameters
    ----------
    attention, batch_norm
        See :class:`ComponentNetwork`; ``"none"`` is :class:`UnattendedNetwork`.
    weight_decay
        See :class:`DecayedNetwork`.
    output_scale
        What the sigmoid is scaled to; by default the scale of the ratings.
    """

    name: ClassVar[str] = "deepcf-component"
    attention: str = setting("two weights", choices=ATTENTION)
    batch_norm: bool = True
    weight_decay: float = setting(0.0, least=0)
    output_scale: Sequence[float] | None = None

    def build_network(self, data: Interactions) -> AttentionNetwork:
        low, high = self.output_scale or self.scale
        layers = self.embedding_size, self.hidden, self.dropout
        known = data.n_users, data.n_movies, (low, high)
        if self.weight_decay > 0:
            network = DecayedNetwork(*known, *layers)
            network.decay = self.weight_decay
            return network
        if self.attention == "none":
            return UnattendedNetwork(*known, *layers)
        if self.attention == "two weights" and self.batch_norm:
            return AttentionNetwork(*known, *layers)
        kind: dict[str, Any] = {"attention": self.attention, "batch_norm": self.batch_norm}
        return ComponentNetwork(*known, *layers, **kind)

    def _train(self, data: Interactions, train: Batch, held_out: Batch | None) -> None:
        super()._train(data, train, held_out)
        # By weights: MSE of the rows trained on, without dropout.
        self.train_error: dict[str, float] = {}
        for which in WEIGHTS:
            self.network.load_state_dict(self._states[which])
            self.train_error[which] = mean_squared_error(self.network, train)
        self.network.load_state_dict(self._states[self.weights])
