"""The table of the kinds of data: each can be prepared, is read by a public datamodule, and is learnt from."""

from __future__ import annotations

import lit_llada
from lit_llada.cli.prepare import PREPARERS
from lit_llada.data.base import PreparedDataModule
from lit_llada.data.kinds import KINDS
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.modules.sft import SFTModule
from lit_llada.modules.vrpo import VRPOModule
from lit_llada.text.records import FORMS


def test_every_kind_can_be_prepared_and_nothing_else() -> None:
    assert set(PREPARERS) == set(KINDS)


def test_every_kind_has_a_public_datamodule() -> None:
    for kind in KINDS.values():
        assert issubclass(getattr(lit_llada, kind.datamodule), PreparedDataModule)


def test_some_module_learns_from_every_kind() -> None:
    assert {module.learns_from for module in (PretrainingModule, SFTModule, VRPOModule)} == set(KINDS)


def test_the_kinds_of_records_are_those_that_are_read_row_by_row() -> None:
    assert {name for name, kind in KINDS.items() if kind.has_records} == set(FORMS)
