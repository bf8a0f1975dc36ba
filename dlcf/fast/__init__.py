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
from dlcf.training import FASTER_STEPS, Batch, TrainingConfig, TrainingStep
from dlcf.variants.networks import FaithfulAttentionNetwork

__all__ = ["disabled", "register"]


def register() -> None:
    """Fill the hooks; importing this package does it."""
    FASTER_STEPS[AttentionNetwork] = _step_of_attention
    FASTER_STEPS[FactorNetwork] = _step_of_factors
    FASTER_STEPS[ImplicitFactorNetwork] = _deferred_step_of_factors
    FASTER_SCORES[AttentionNetwork] = _scores
    FASTER_SCORES[FaithfulAttentionNetwork] = _scores


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


def _step_of_attention(
    network: AttentionNetwork, train: Batch, config: TrainingConfig
) -> TrainingStep | None:
    if config.precision == "float32" and _can_defer(train, config):
        return _module("attention_step").AttentionStep(network, train, config)
    return _deferred(network, train, config, network.user_embedding, network.movie_embedding)


def _step_of_factors(
    network: FactorNetwork, train: Batch, config: TrainingConfig
) -> TrainingStep | None:
    if config.precision == "float32" and _can_defer(train, config):
        return _module("factor_step").FactorStep(network, train, config)
    return _deferred_step_of_factors(network, train, config)


def _deferred_step_of_factors(
    network: FactorNetwork, train: Batch, config: TrainingConfig
) -> TrainingStep | None:
    """For all tables but SVD++'s implicit factors, of which a batch reads nearly all."""
    factors = network.user_factors, network.movie_factors
    return _deferred(network, train, config, *factors, network.user_bias, network.movie_bias)


def _deferred(
    network: Any, train: Batch, config: TrainingConfig, *tables: Any
) -> TrainingStep | None:
    if not _can_defer(train, config):
        return None
    return _module("deferred_step").DeferredStep(network, train, config, tables)


def _can_defer(train: Batch, config: TrainingConfig) -> bool:
    """On the CPU, with a learning rate that stands still within an epoch."""
    return config.schedule == "plateau" and train[-1].device.type == "cpu"


def _scores(network: AttentionNetwork, users: Tensor) -> Tensor:
    return _module("catalogue").score_all(network, users)


register()
