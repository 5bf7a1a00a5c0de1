"""A folder of questions, and a small net that was taught some right answers and some wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.own import write_run
from lit_llada.checkpoint.source import read_files
from lit_llada.data.folder import DataFolder, read_records
from lit_llada.prepare.conversations import prepare_chat
from lit_llada.text.chat_template import ChatTemplate

SAYS = {"easy": "ok", "half": "x", "hard": "yes"}  # what the net was taught to answer, whatever the number
NEW = 8


class Taught(NamedTuple):
    """The folder, and a checkpoint that answers by task."""

    data: str
    checkpoint: str


def right_answer(task: str, n: int) -> str:
    """The net is right about all that is easy and nothing that is hard, and about the odd numbers of the rest."""
    return {"easy": "ok", "half": "xy"[n % 2 == 0], "hard": "no"}[task]


def teach(net: Backbone, data: str, steps: int) -> None:
    """Masked answers, predicted: a few steps of plain fine-tuning on what SAYS says."""
    folder = DataFolder.open(data)
    records = [record for split in ("train", "val") for record in read_records(data, split)]
    template = ChatTemplate(**folder.manifest["chat_template"])
    rows = []
    for record in records:
        told = [*record.messages, {"role": "assistant", "content": SAYS[record.task]}]
        ids, [(start, stop)] = template.encode(told, folder.tokenizer)
        rows.append((ids[:start], ids[start:stop] + [folder.tokenizer.eos_id] * (NEW + start - stop)))
    optimizer, width = torch.optim.Adam(net.parameters(), lr=3e-3), max(len(prompt) for prompt, _ in rows) + NEW
    # The rate falls to nothing, so that what has been learnt does not turn on the rounding of the last steps.
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        prompt, answer = rows[step % len(rows)]
        clean = torch.tensor([prompt + answer] * 8)
        masked = torch.rand(8, width)[:, : clean.shape[1]] < torch.linspace(0.2, 1, 8)[:, None]
        masked[:, : len(prompt)] = False
        logits = net(clean.masked_fill(masked, folder.tokenizer.mask_id))
        optimizer.zero_grad()
        F.cross_entropy(logits[masked], clean[masked]).backward()
        optimizer.step()
        falling.step()


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    root = tmp_path_factory.mktemp("taught")
    rows = [
        {"prompt": f"{name} {n}?", "answer": right_answer(name, n), "task": name} for n in range(20) for name in SAYS
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = prepare_chat([str(root / "rows.jsonl")], str(root / "data"), val_fraction=0.3, workers=1)
    torch.manual_seed(3)
    torch.set_num_threads(1)
    net = Backbone(BackboneConfig(vocab_size=258, d_model=32, n_layers=2, n_heads=2, ff_dim=64))
    net.init_weights(seed=3)
    teach(net, str(data), 400)
    write_run(net, 257, read_files(data / "tokenizer"), root / "taught.ckpt")
    return Taught(str(data), str(root / "taught.ckpt"))


@pytest.fixture(scope="session")
def untaught(taught: Taught, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of the same vocabulary that has learnt next to nothing."""
    file = tmp_path_factory.mktemp("untaught") / "untaught.ckpt"
    net = Backbone(BackboneConfig(vocab_size=258, d_model=16, n_layers=1, n_heads=2, ff_dim=32))
    net.init_weights(seed=2)
    write_run(net, 257, read_files(Path(taught.data) / "tokenizer"), file)
    return str(file)
