"""The generation config of a checkpoint, where a calibrated sampling plan is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_llada.files import read_object, writing

if TYPE_CHECKING:
    from lit_llada.checkpoint.load import Checkpoint

KEY = "lit_llada"  # our corner of a generation_config.json


def read_generation(checkpoint: Checkpoint) -> dict[str, Any]:
    """The folder's ``generation_config.json``, and over it what ``calibrate`` left beside a run's checkpoint.

    Raises:
        UserError: what lies beside it is not a JSON object.
    """
    place = checkpoint.path
    beside = {} if place is None else read_object(place.with_name(place.name + ".generation.json"))
    return checkpoint.generation | beside


def generation_path(place: Path) -> Path:
    """Where the plan of a checkpoint is kept: in a published folder, or beside a run's file or folder of shards."""
    published = (place / "config.json").is_file()
    return place / "generation_config.json" if published else place.with_name(place.name + ".generation.json")


def save_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Write the fields of a plan into a generation config; every other field of the file stays as it is.

    Raises:
        UserError: there is a file of another form.
    """
    whole = {**read_object(path), KEY: {"plan": {**plan}}}
    with writing(path) as file:
        file.write(json.dumps(whole, indent=2) + "\n")
