"""Settings that are declared once, as fields of a dataclass: default, kind and range.

A field is ``epochs: int = setting(10, least=1)``; :func:`check_settings`, called in
``__post_init__``, refuses what is no such value, in one line, and makes NumPy's scalars Python's.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import Field, field, fields
from numbers import Integral, Real
from typing import Any

_LIMITS = {
    "least": ("of at least", operator.ge),
    "above": ("above", operator.gt),
    "below": ("below", operator.lt),
}


def setting(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A field with a range: ``least <= value``, ``above < value < below``, or choices.

    Of a sequence, each element is held to it.
    """
    limits = {"least": least, "above": above, "below": below}
    return field(default=default, metadata={**limits, "choices": tuple(choices)})


def check_settings(settings: Any) -> None:
    """Check the fields of a dataclass by their annotations and ranges, and convert them in place.

    Known annotations are ``int``, ``float``, ``str``, ``bool``, each with ``| None`` or as
    ``Sequence[...]``, which becomes a tuple. Others are left alone. ValueError where a value is of
    another kind, not finite, or out of range names the field.
    """
    for declared in fields(settings):
        value = getattr(settings, declared.name)
        object.__setattr__(settings, declared.name, _checked(declared, str(declared.type), value))


def whole(name: str, value: Any, least: int) -> int:
    """`value`, an argument called `name`, as an int; ValueError where it is none from `least`."""
    return int(_number(name, "int", {"least": least}, value))


def _checked(declared: Field[Any], kind: str, value: Any) -> Any:
    if kind.endswith(" | None"):
        return None if value is None else _checked(declared, kind.removesuffix(" | None"), value)
    if kind.startswith("Sequence["):
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            _refuse(declared.name, value, "a sequence")
        element = kind.removeprefix("Sequence[").removesuffix("]")
        return tuple(_checked(declared, element, item) for item in value)
    if kind in ("int", "float"):
        value = _number(declared.name, kind, declared.metadata, value)
    elif kind in ("str", "bool"):
        wanted = str if kind == "str" else bool
        if not isinstance(value, wanted):
            _refuse(declared.name, value, "a text" if kind == "str" else "True or False")
    choices = declared.metadata.get("choices", ())
    if choices and value not in choices:
        _refuse(declared.name, value, f"{', '.join(choices[:-1])} or {choices[-1]}")
    return value


def _number(name: str, kind: str, kept: Mapping[str, Any], value: Any) -> int | float:
    limits = [(*known, kept[key]) for key, known in _LIMITS.items() if kept.get(key) is not None]
    wanted = "a whole number" if kind == "int" else "a number"
    said = " and ".join(f"{words} {limit:g}" for words, _, limit in limits)
    wanted = f"{wanted} {said}".strip()
    if isinstance(value, bool) or not isinstance(value, Integral if kind == "int" else Real):
        _refuse(name, value, wanted)
    number = int(value) if kind == "int" else float(value)
    if not (math.isfinite(number) and all(holds(number, limit) for _, holds, limit in limits)):
        _refuse(name, value, wanted)
    return number


def _refuse(name: str, value: Any, wanted: str) -> None:
    raise ValueError(f"{name} is {value!r}; give {wanted}")
