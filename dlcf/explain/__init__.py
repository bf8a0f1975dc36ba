"""Explanations: what models say of a prediction, whether it is true, and pages for a person.

Begin with `attribution` (user or movie?) and `history` (which of the user's ratings?);
`faithfulness` and `sanity` test both, `calibration` reads strengths, `reader` shows it all.
"""

from dlcf.explain.attribution import *  # noqa: F403
from dlcf.explain.calibration import *  # noqa: F403
from dlcf.explain.faithfulness import *  # noqa: F403
from dlcf.explain.history import *  # noqa: F403
from dlcf.explain.sanity import *  # noqa: F403
