"""Hyper-parameters as plain values: every checkpoint then loads with ``weights_only``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import lightning as L


def keep_plain(module: L.LightningModule) -> None:
    """Make the hyper-parameters that a module has saved plain, in place."""
    if "_instantiator" in module.hparams:  # Lightning's command line has done it
        return
    values = plain(module.hparams, type(module))
    module._hparams.clear()
    module._hparams.update(values)
    module._hparams_initial = copy.deepcopy(module._hparams)  # type: ignore[assignment]


def plain(values: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Hyper-parameters with dataclasses as mappings, and what Lightning needs to build the module from them again.

    Args:
        values: name -> value, as given to the constructor.
        cls: the module's class.
    """
    found = {name: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for name, v in values.items()}
    return found | {
        "_class_path": f"{cls.__module__}.{cls.__qualname__}",
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }
