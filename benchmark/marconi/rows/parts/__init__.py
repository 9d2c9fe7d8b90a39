"""All parts, in the order in which they are listed and run."""

from __future__ import annotations

from rows.part import Part
from rows.parts.hints import HINTS
from rows.parts.host import HOST
from rows.parts.listed import LISTED
from rows.parts.live import DEMO, LIVE_AGENTS, LIVE_CHATS
from rows.parts.load import LOAD
from rows.parts.matrix import MATRIX
from rows.parts.seconds import SECONDS
from rows.parts.simulated import ADMISSION, BY_MEMORY, FORK, MODELS, POLICIES, UNIFIED
from rows.parts.timed import (
    BUSY_SERVER,
    CANDIDATES_SPEED,
    SPLITS,
    STAIRCASE,
    TREE_SPEED,
    TUNING_GAIN,
)

PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        POLICIES,
        BY_MEMORY,
        ADMISSION,
        SPLITS,
        MODELS,
        LISTED,
        FORK,
        UNIFIED,
        LOAD,
        HINTS,
        HOST,
        SECONDS,
        STAIRCASE,
        TREE_SPEED,
        CANDIDATES_SPEED,
        TUNING_GAIN,
        BUSY_SERVER,
        LIVE_CHATS,
        LIVE_AGENTS,
        DEMO,
        MATRIX,
    )
}
