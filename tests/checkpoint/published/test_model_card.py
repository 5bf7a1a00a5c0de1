"""A model card says what the net is, and of a run what trained it."""

from __future__ import annotations

from typing import Any

import pytest

from lit_llada.checkpoint.load import Checkpoint
from lit_llada.checkpoint.published.model_card import model_card

CARD: dict[str, Any] = {
    "data": [{"sha256": "ab" * 32, "splits": {"train": {"tokens": 1234567}, "val": {"tokens": 89}}}],
    "config": {"model": {"lr": 0.25}},
    "starts": [
        {"command": ["old"]},
        {
            "command": ["lit-llada", "fit", "a b"], "device": "cpu (x86_64)", "world_size": 2,
            "versions": {"torch": "2.11", "peft": None}, "git": {"commit": "c0ffee", "dirty": True},
        },
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["# A masked diffusion language model", "A dense Transformer", ", from both sides."]),
        ({"n_experts": 4, "expert_dim": 16}, ["A sparse Transformer (mixture of experts)"]),
        ({"causal": True}, ["# An autoregressive language model", ", from the left alone."]),
    ],
)
def test_a_card_says_what_the_net_is(net: Any, options: dict[str, Any], words: list[str]) -> None:
    made = net(**options)
    text = model_card(Checkpoint(made, None, mask_id=3), {"architectures": ["Format"]})
    for word in [*words, f"{made.config.parameter_count():,} parameters", "the format of Format", "(id 3)"]:
        assert word in text
    assert "## Training" not in text and 'load_checkpoint("PATH OF THIS FOLDER")' in text


def test_a_card_of_a_run_names_data_code_machine_and_the_last_command(net: Any) -> None:
    text = model_card(Checkpoint(net(), None, mask_id=3, run_card=CARD), {"architectures": ["Format"]})
    for line in (
        "* Data `abababababababab` (train: 1,234,567 tokens, val: 89 tokens)",
        "* Code: torch 2.11; commit `c0ffee` with changes",
        "* Machine: cpu (x86_64), 2 processes; started 2 times",
        "lit-llada fit 'a b'",
        '"lr": 0.25',
    ):
        assert line in text
    assert "peft" not in text and "\nold" not in text
