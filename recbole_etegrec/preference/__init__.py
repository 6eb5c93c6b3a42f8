"""Groups of candidates that a model proposes, and what of them is preferred; see `trainer/`."""

from recbole_etegrec.preference.groups import PREFERENCES, GroupMaker
from recbole_etegrec.preference.guard import Guard
from recbole_etegrec.preference.reference import Reference
from recbole_etegrec.preference.rewards import REWARDS, Proposed
from recbole_etegrec.preference.signals import Signals

__all__ = [
    "PREFERENCES",
    "REWARDS",
    "Guard",
    "GroupMaker",
    "Proposed",
    "Reference",
    "Signals",
]
