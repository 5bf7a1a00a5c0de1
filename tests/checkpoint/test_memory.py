"""A checkpoint is never in memory twice: while a net is loaded, it and one tensor are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone

GOLDEN = Path(__file__).parents[1] / "golden"
MIB = 2**20
SLACK = 40 * MIB
# LLaDA-8B and LLaDA-MoE-7B-A1B in small: the same shares of vocabulary, attention and MLP.
LAYOUTS: dict[str, dict[str, Any]] = {
    "8b": {"vocab_size": 60_000, "d_model": 768, "n_layers": 6, "n_heads": 6, "ff_dim": 2304},
    "moe": {"vocab_size": 20_000, "d_model": 512, "n_layers": 4, "n_heads": 4, "ff_dim": 64, "n_experts": 32,
            "expert_dim": 512, "qk_norm": "head"},
}  # fmt: skip
LOAD = """
import json, sys
from lit_llada.checkpoint.load import load_net

def memory(key):  # KiB
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024

load_net(sys.argv[2])  # what torch imports at its first use does not count
before = memory("VmRSS")
net = load_net(sys.argv[1])
print(json.dumps([memory("VmHWM") - before, sum(p.nbytes for p in net.parameters())]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the kernel's own account of memory is read")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_loading_takes_one_model_and_one_tensor(layout: dict[str, Any], published) -> None:
    with torch.device("meta"):
        net = Backbone(BackboneConfig(**layout))
    net.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in net.parameters():
        parameter.data.fill_(0.25)
    largest = max(parameter.nbytes for parameter in net.parameters())
    folder = published(net, max_shard_size="100MB").path
    del net
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), str(GOLDEN / "moe_a")], capture_output=True, check=True
    )
    peak, model = json.loads(done.stdout)
    assert model > 150 * MIB and model + largest + SLACK < 1.7 * model, "too small to tell one model from two"
    assert 0.9 * model < peak < model + largest + SLACK, f"{peak / MIB:.0f} MiB for a model of {model / MIB:.0f} MiB"
