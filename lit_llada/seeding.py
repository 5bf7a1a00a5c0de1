"""Which seed does a run have? One for weights, order of the data and noise, unless these are given their own."""

from __future__ import annotations

import os


def seed_of_run(seed: int | None) -> int:
    """The given seed, or else what ``lightning.seed_everything`` has set, or else 1."""
    return int(os.environ.get("PL_GLOBAL_SEED", 1)) if seed is None else seed
