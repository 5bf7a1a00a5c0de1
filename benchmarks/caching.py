"""When does a cache pay? The time of a cached step over a whole one, by the length of the canvas.

What it costs in accuracy is in ``sampling.py``.
"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.timing import arguments, summarise, table
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.sampling.cached import Cached
from lit_llada.sampling.canvas import Specials
from lit_llada.sampling.generate import generate
from lit_llada.sampling.plan import Plan


@torch.no_grad()
def step_times(config: BackboneConfig, lengths: list[int], block: int, steps: int) -> list[list[str]]:
    """How many times faster than a whole step a cached one is, by canvas length; one row, blocks in its middle."""
    config.vocab_size = 4096
    net, lines = Backbone(config).eval(), []
    for length in lengths:
        canvas = torch.randint(4095, (1, length))
        canvas[:, length // 2 :] = 4095
        plan, specials = Plan(block_length=block), Specials(mask=4095)
        ways = [net, *(Cached(net, s) for s in ("prefix", "dual", "vicinity"))]  # type: ignore[arg-type]
        runs = [generate(way, canvas, specials, plan) for way in ways]
        spent: list[list[float]] = [[] for _ in runs]
        for step in range(min(steps, block)):
            for run, times in zip(runs, spent, strict=True):
                begin = time.perf_counter()
                next(run)
                if step > 1:  # the canvas as it was given, and the step that fills the cache
                    times.append(time.perf_counter() - begin)
        ratios = [summarise(list(zip(times, spent[0], strict=True))).ratio for times in spent[1:]]
        lines.append([f"{length:,}", f"{1e3 * statistics.median(spent[0]):.1f}", *(f"{r:.2f}" for r in ratios)])
    return lines


def main() -> None:
    args = arguments(__doc__)
    columns = ["canvas", "whole, ms", "prefix", "dual", "vicinity 16"]
    lengths, shape = [64, 128, 256, 512, 1024], {"d_model": 256, "n_layers": 4, "n_heads": 4, "ff_dim": 768}
    for name, sparse in (("dense", {}), ("8 experts, 2 a token", {"n_experts": 8, "expert_dim": 384})):
        lines = step_times(BackboneConfig(**shape, **sparse), lengths, 32, 8 if args.quick else 24)  # type: ignore[arg-type]
        table(f"Speed of a cached step over a whole one, d 256, 4 layers, {name}, blocks of 32", columns, lines)


if __name__ == "__main__":
    main()
