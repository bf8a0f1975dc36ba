"""Mult-VAE: a variational auto-encoder of who rated what (Liang et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dlcf.models.base import Interactions
from dlcf.related.networks import RankingNetwork, RatedMovies, RelatedRecommender
from dlcf.runtime.settings import setting
from dlcf.training import Batch


class VariationalNetwork(RankingNetwork):
    """From a user's row of X to the mean and log variance of z, and from z to the catalogue."""

    updates: Tensor  # that training has done, by which beta grows

    def __init__(self, data: Interactions, of: MultVAE) -> None:
        super().__init__()
        self.input_dropout = of.input_dropout
        self.anneal_cap, self.anneal_updates = of.anneal_cap, of.anneal_updates
        self.rated = RatedMovies(data, data.ratings >= of.positive_threshold)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        hidden, latent = of.hidden_size, of.latent_size
        into, out = nn.Linear(data.n_movies, hidden), nn.Linear(hidden, data.n_movies)
        self.encoder = nn.Sequential(into, nn.Tanh(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Tanh(), out)
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.xavier_normal_(parameter)
            else:
                nn.init.normal_(parameter, std=0.001)

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the users' z."""
        normed = nn.functional.normalize(rows)
        kept = nn.functional.dropout(normed, self.input_dropout, self.training)
        mean, log_variance = self.encoder(kept).chunk(2, dim=1)
        return mean, log_variance

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the evidence lower bound, its KL divergence times beta; minus the likelihood."""
        rows = self.rated.rows(batch[0])
        mean, log_variance = self.encode(rows)
        latent = mean
        if self.training:
            latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        share = (self.updates / self.anneal_updates).clamp(max=1)
        if self.training:
            self.updates += 1
        logs = nn.functional.log_softmax(self.decoder(latent), dim=1)
        unlikely = -(rows * logs).sum(1).mean()
        divergence = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(1).mean()
        return unlikely + self.anneal_cap * share * divergence, unlikely

    @torch.no_grad()
    def score_all(self, users: Tensor) -> Tensor:
        """Logits of the catalogue, of the mean of z."""
        return self.decoder(self.encode(self.rated.rows(users))[0])


@dataclass(kw_only=True, eq=False)
class MultVAE(RelatedRecommender):
    """Mult-VAE^PR (Liang, Krishnan, Hoffman and Jebara, 2018).

    A user's z is drawn from N(0, I), and her movies from a multinomial distribution over the
    softmax of the catalogue, ``pi(z) ~ exp(f(z))``. It minimises

    ``-E_q(z|x) [sum_i x_ui log pi_i(z)] + beta KL(q(z|x) || p(z))``,

    where ``q(z|x) = N(mu(x), diag sigma^2(x))``, x is normalised to length 1 and some of it dropped
    out, and beta grows linearly from 0. mu, sigma and f have one hidden layer each, of tanh. A
    movie is ranked by f of the mean of z.

    Otherwise than in the paper:

    - Layers of 600 and 200, batches of 500 and likes from 4 stars on are the paper's; the defaults
      are smaller and suit hundreds of users.
    - beta reaches `anneal_cap` after a number of updates that is set, not found by early stopping.
    - Users without a positive rating stay, with a row of zeros.

    Parameters
    ----------
    hidden_size, latent_size
        Of the hidden layers, and of z.
    input_dropout
        Share of a user's movies that the encoder does not see in a step.
    anneal_cap, anneal_updates
        What beta grows to, and the updates until then.
    positive_threshold
        The lowest rating that counts as 1 in X; 0 counts all.
    epochs, batch_size, learning_rate, seed, device
        See :class:`dlcf.training.TrainingConfig`; a batch is of users.
    """

    name: ClassVar[str] = "multvae"
    hidden_size: int = setting(200, least=1)
    latent_size: int = setting(64, least=1)
    input_dropout: float = setting(0.5, least=0, below=1)
    anneal_cap: float = setting(0.2, least=0)
    anneal_updates: int = setting(300, least=1)
    positive_threshold: float = 3.5
    epochs: int = setting(50, least=1)
    batch_size: int = setting(64, least=1)
    learning_rate: float = setting(2e-3, above=0)
    seed: int = setting(0, least=0)
    device: str = "auto"

    def rows(self, data: Interactions) -> Batch:
        return torch.arange(data.n_users), torch.ones(data.n_users)

    def build_network(self, data: Interactions) -> VariationalNetwork:
        return VariationalNetwork(data, self)
