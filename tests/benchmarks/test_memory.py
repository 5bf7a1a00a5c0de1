"""The computed memory: its formula holds on a small net, its sums are the parameter counts', its commands parse."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
import torch

from lit_llada.backbone.adapters import is_adapter
from lit_llada.backbone.config import SIZES, BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.cli.main import main
from lit_llada.training.lora import LoRA, add_adapters, init_adapters

ROOT = Path(__file__).parents[2]
TOKENS = torch.randint(256, (2, 1024), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])  # the benchmarks are not installed
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shape", [{"n_kv_heads": 1, "ff_dim": 384}, {"n_kv_heads": 2, "ff_dim": 256}])
def test_activations_are_what_the_allocator_sees(shape: dict[str, int], frozen: bool, checkpointing: bool) -> None:
    """Within a tenth; attention's own kernel, so that no scores are kept."""
    from benchmarks.memory import activations
    from benchmarks.timing import peak_memory

    if frozen:
        pytest.importorskip("peft")
    config = BackboneConfig(vocab_size=256, d_model=128, n_layers=6, n_heads=2, **shape)
    net = Backbone(config, "sdpa")
    net.checkpointing = checkpointing
    if frozen:
        add_adapters(net, LoRA(rank=1, base="bfloat16"))
        init_adapters(net, 1)
    else:
        for parameter in net.parameters():  # their gradients are no activations
            parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            net.hidden(TOKENS)[0].sum().backward()

    casts = 0 if frozen else 2 * config.non_embedding_parameters()
    computed = activations(config, TOKENS.numel(), frozen, checkpointing)
    assert computed == pytest.approx(peak_memory(step) - casts, rel=0.1)


def test_adapters_are_counted_as_they_are() -> None:
    from benchmarks.memory import adapter_parameters

    pytest.importorskip("peft")
    config = BackboneConfig(vocab_size=256, d_model=64, n_layers=3, n_heads=4, n_kv_heads=2, ff_dim=96)
    net = Backbone(config)
    add_adapters(net, LoRA(rank=3))
    assert adapter_parameters(config, 3) == sum(p.numel() for n, p in net.named_parameters() if is_adapter(n))


def test_the_table_says_what_its_parts_are(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.memory import markdown, uses

    one, many, lora, _, full = rows = uses(SIZES["8b"])
    count = SIZES["8b"].parameter_count()
    assert one.parts["weights"] == lora.parts["weights"] == 2 * count
    assert 8 * (full.parts["weights"] + full.parts["gradients, moments"]) == pytest.approx(16 * count)
    assert sum(many.parts.values()) > sum(one.parts.values())
    assert all(sum(use.parts.values()) < 80e9 for use in rows)
    table = markdown(rows)
    assert "computed" in table.splitlines()[0]
    assert {line.count("|") for line in table.split("\n\n")[0].splitlines()} == {8}
    assert all(f"`{use.command}`" in table for use in rows)


@pytest.mark.parametrize("number", range(5))
def test_its_commands_parse(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.memory import uses

    program, *words = shlex.split(uses(SIZES["8b"])[number].command)
    assert program == "lit-llada"
    if words[0] == "sample":  # the checkpoint is looked for after all options have been read
        (tmp_path / "prompts.txt").write_text("one\n")
        monkeypatch.chdir(tmp_path)
        assert main(words) != 0
        assert "CHECKPOINT: no such file or folder" in capsys.readouterr().err
        return
    try:
        code = main([*words, "--print_config"])
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    assert not code, printed.err
    assert "checkpointing: true" in printed.out and "precision: bf16-mixed" in printed.out
    assert ("base: bfloat16" in printed.out) == ("lora" in " ".join(words))
