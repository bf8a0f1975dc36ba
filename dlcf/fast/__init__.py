"""All that is only there for speed: it fills the hooks of the core, which works without it.

Begin with :func:`disabled`, inside which everything runs on plain PyTorch, and with README.md, a
table of the tricks and what each buys; then read `attention_step`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from torch import Tensor

from dlcf.baselines.svdpp import ImplicitFactorNetwork
from dlcf.models.deepcf import AttentionNetwork
from dlcf.models.mf import FactorNetwork
from dlcf.models.network import FASTER_SCORES
from dlcf.runtime.distributed import n_processes
from dlcf.training import FASTER_STEPS, Batch, RatingNetwork, TrainingConfig, TrainingStep
from dlcf.variants.components import ComponentNetwork, UnattendedNetwork
from dlcf.variants.networks import FaithfulAttentionNetwork

# By type: embedding tables of which a batch touches few rows. SVD++'s implicit factors are none, of
# which a batch reads nearly all.
_EMBEDDINGS = ("user_embedding", "movie_embedding")
_FACTORS = ("user_factors", "movie_factors", "user_bias", "movie_bias")
_TABLES: dict[type[RatingNetwork], tuple[str, ...]] = {
    AttentionNetwork: _EMBEDDINGS,
    ComponentNetwork: _EMBEDDINGS,
    UnattendedNetwork: _EMBEDDINGS,
    FactorNetwork: _FACTORS,
    ImplicitFactorNetwork: _FACTORS,
}
# Module and class of the steps that are written by hand.
_BY_HAND: dict[type[RatingNetwork], tuple[str, str]] = {
    AttentionNetwork: ("attention_step", "AttentionStep"),
    UnattendedNetwork: ("attention_step", "UnattendedStep"),
    FactorNetwork: ("factor_step", "FactorStep"),
}


@contextmanager
def disabled() -> Iterator[None]:
    """Inside, networks are trained and ranked by the plain code of the core."""
    hooks: tuple[dict[Any, Any], ...] = FASTER_STEPS, FASTER_SCORES
    kept = [dict(hook) for hook in hooks]
    for hook in hooks:
        hook.clear()
    try:
        yield
    finally:
        for hook, entries in zip(hooks, kept, strict=True):
            hook.update(entries)


def _module(name: str) -> Any:
    """A module of this room, imported when it is first used, because numba is slow to import."""
    return import_module(f"{__name__}.{name}")


def _step(network: RatingNetwork, train: Batch, config: TrainingConfig) -> TrainingStep | None:
    """By hand, or with deferred Adam; on the CPU, where an epoch has one learning rate."""
    if config.schedule != "plateau" or train[-1].device.type != "cpu":
        return None
    if config.precision == "float32" and type(network) in _BY_HAND:
        module, name = _BY_HAND[type(network)]
        return getattr(_module(module), name)(network, train, config)
    if n_processes() > 1:
        return None  # DistributedDataParallel is not given sparse gradients: a process once crashed
    tables = [getattr(network, table) for table in _TABLES[type(network)]]
    return _module("deferred_step").DeferredStep(network, train, config, tables)


def _scores(network: AttentionNetwork, users: Tensor) -> Tensor:
    return _module("catalogue").score_all(network, users)


FASTER_STEPS.update(dict.fromkeys(_TABLES, _step))
FASTER_SCORES.update(dict.fromkeys((AttentionNetwork, FaithfulAttentionNetwork), _scores))
