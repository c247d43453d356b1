"""All plots of the demo stories under their names.

stories.py draws from them; the order is part of what a seed means.
"""

from __future__ import annotations

from journeys import JOURNEYS
from scenes import Step
from trials import TRIALS

PLOTS: dict[str, list[Step]] = TRIALS | JOURNEYS
