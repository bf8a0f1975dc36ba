"""What the plain evidence and the compiled one share: scales, and the hook that joins them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TIME_SCALES = (15.0, 90.0, 600.0, 3600.0, 86400.0, 30 * 86400.0, 3e7)  # seconds: page ... year
SESSION = 2  # the position of ten minutes in TIME_SCALES
N_CHANNELS = 8  # what is said of each rating in the history

# Under "describe": context, users, movies, times and history size -> the fields of an `Evidence`,
# as :meth:`dlcf.plus.evidence.Context.describe` gives them, in less time.
FASTER_EVIDENCE: dict[str, Callable[..., Any]] = {}
