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

from dlcf.models.deepcf import AttentionNetwork
from dlcf.models.mf import FactorNetwork
from dlcf.models.network import FASTER_SCORES
from dlcf.plus.scales import FASTER_EVIDENCE
from dlcf.training import FASTER_STEPS, Batch, RatingNetwork, TrainingConfig, TrainingStep
from dlcf.variants.components import UnattendedNetwork
from dlcf.variants.networks import FaithfulAttentionNetwork

# By type of network, the module and class of its step by hand.
_BY_HAND: dict[type[RatingNetwork], tuple[str, str]] = {
    AttentionNetwork: ("attention_step", "AttentionStep"),
    UnattendedNetwork: ("attention_step", "UnattendedStep"),
    FactorNetwork: ("factor_step", "FactorStep"),
}


@contextmanager
def disabled() -> Iterator[None]:
    """Inside, networks are trained and ranked, and evidence is computed, by the plain code."""
    hooks: tuple[dict[Any, Any], ...] = FASTER_STEPS, FASTER_SCORES, FASTER_EVIDENCE
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
    """By hand: on the CPU, in float32, where an epoch has one learning rate."""
    if (train[-1].device.type, config.precision, config.schedule) != ("cpu", "float32", "plateau"):
        return None
    module, name = _BY_HAND[type(network)]
    return getattr(_module(module), name)(network, train, config)


def _scores(network: AttentionNetwork, users: Tensor) -> Tensor:
    return _module("catalogue").score_all(network, users)


def _describe(*arguments: Any) -> Any:
    return _module("evidence").describe(*arguments)


FASTER_STEPS.update(dict.fromkeys(_BY_HAND, _step))
FASTER_SCORES.update(dict.fromkeys((AttentionNetwork, FaithfulAttentionNetwork), _scores))
FASTER_EVIDENCE["describe"] = _describe
