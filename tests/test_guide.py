"""docs/post_training.md: its five commands, taken from the page and run one after the other on a tiny checkpoint."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.load import load_checkpoint
from lit_llada.checkpoint.own import write_run
from lit_llada.checkpoint.published.write import export_checkpoint
from lit_llada.checkpoint.source import read_files
from lit_llada.cli.main import main
from lit_llada.text.chat_template import TEMPLATES
from lit_llada.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "post_training.md").read_text()
HEADERS = ["<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
STEPS = 2
# What makes a command of the guide small and short; nothing else is added to it.
PREPARE = ["--val_fraction", "0.2", "--workers", "1"]
FIT = [
    *("--trainer.max_steps", f"{STEPS}", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--model.schedule.warmup_steps", "1", "--data.length", "128", "--sampling.steps", "8"),
    *("--trainer.val_check_interval", f"{STEPS}"),
]


def commands(number: int) -> list[list[str]]:
    """The words behind ``lit-llada`` of every fenced command of a section."""
    [section] = re.findall(rf"^## {number}\. .*?(?=^## )", GUIDE, re.MULTILINE | re.DOTALL)
    blocks = section.split("```")[1::2]
    return [shlex.split(line, comments=True)[1:] for block in blocks for line in block.strip().splitlines()]


def short(words: list[str], *more: str) -> list[str]:
    """The same command; a checkpoint of a whole run of its recipe is that of a short one."""
    for recipe in ("sft", "vrpo"):
        steps = yaml.safe_load((ROOT / "configs" / "recipe" / f"{recipe}.yaml").read_text())["trainer"]["max_steps"]
        whole, ours = (f"runs/{recipe}/checkpoints/step={n:07d}.ckpt" for n in (steps, STEPS))
        words = [ours if word == whole else word for word in words]
    return [*words, *more]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the guide's names are there: CHECKPOINT in the Hugging Face layout, the two JSONL files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    tokenizer = Tokenizer.byte()
    tokenizer.model.add_special_tokens(HEADERS)
    tokenizer.save(tmp_path / "start")
    (tmp_path / "start" / "chat_template.jinja").write_text(TEMPLATES["llada"])
    net = Backbone(BackboneConfig(vocab_size=262, d_model=32, n_layers=1, n_heads=2, ff_dim=64))
    net.init_weights(seed=1)
    write_run(net, tokenizer.mask_id, read_files(tmp_path / "start"), tmp_path / "start.ckpt")
    export_checkpoint(load_checkpoint(tmp_path / "start.ckpt"), tmp_path / "CHECKPOINT")
    chats = [{"prompt": f"{n}?", "response": f"{n} it is"} for n in range(40)]
    pairs = [{"prompt": f"{n}?", "chosen": f"{n} it is", "rejected": "no"} for n in range(40)]
    for name, rows in (("my_chats", chats), ("my_pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_five_commands_from_your_own_jsonl_to_an_aligned_checkpoint(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(words: list[str], *more: str) -> str:
        status = main(short(words, *more))
        captured = capsys.readouterr()
        assert status == 0, f"lit-llada {shlex.join(words)}\n{captured.err}"
        return captured.out

    assert [len(commands(n)) for n in range(1, 6)] == [1, 1, 1, 2, 1]
    [chats], [sft], [pairs], [vrpo, reference], [export] = (commands(n) for n in range(1, 6))

    run(chats, *PREPARE)
    assert json.loads(Path("data/chat/manifest.json").read_text())["chat_template"]["source"] == TEMPLATES["llada"]
    assert "sample prompt_1" in run(sft, *FIT)
    run(pairs, *PREPARE)
    assert "accuracy" in run(vrpo, *FIT)
    run(export)

    begun, tuned, aligned = (load_checkpoint(path) for path in ("CHECKPOINT", short(vrpo)[6], short(export)[2]))
    for one, other in ((begun, tuned), (tuned, aligned)):
        assert not torch.equal(one.net.embed.weight, other.net.embed.weight)  # each of the two runs has trained
    exported = load_checkpoint("exported/mine")
    assert exported.tokenizer is not None and begun.tokenizer is not None
    assert exported.tokenizer.digest == begun.tokenizer.digest and exported.mask_id == begun.mask_id
    assert exported.chat_template == TEMPLATES["llada"]
    for name, tensor in aligned.net.state_dict().items():
        assert torch.equal(exported.net.state_dict()[name], tensor.bfloat16()), name

    assert "--model.reference data/reference.safetensors" in run(reference, *FIT)
    splits = json.loads(Path("data/preference/manifest.json").read_text())["splits"]
    for split, table in load_file("data/reference.safetensors").items():
        assert len(table) == splits[split]["records"]
    kept = ["--model.reference", "data/reference.safetensors"]
    assert shlex.join(kept) in GUIDE
    run(vrpo, *FIT, *kept, "--run_dir", "runs/kept")
