"""A training step with this kit's head, against the same with torch's chunked ``linear_cross_entropy``.

The net, batch and noise of `benchmarks.train_step`; only the head differs. torch's has been there since 2.14; it gets
the chunk and the accumulation that are fast on a CPU. It makes the logits of a chunk twice, ours makes them once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Comparison, arguments, compare, table
from benchmarks.train_step import B, Ours, T, stepper
from lit_llada.backbone import transformer
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.head import weighted_nll
from lit_llada.backbone.transformer import Backbone

VOCABULARIES = (4_096, 32_768, 126_464)


def torchs_head(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: Tensor, fused: bool = False
) -> tuple[Tensor, Tensor]:
    """:func:`~lit_llada.backbone.head.weighted_nll` by torch's own function."""
    if torch.is_autocast_enabled("cpu"):
        x, weight = x.bfloat16(), weight.bfloat16()
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=256, acc_policy="accurate")
    nll = F.linear_cross_entropy(x, weight, targets, linear_bias=bias, reduction="none", options=options).float()
    return (nll * scale.to(nll.dtype)).sum(), nll.detach()


def whole_step(vocabulary: int, dtype: torch.dtype, pairs: int) -> tuple[Comparison, float]:
    """Times of both steps, and the relative difference of their first losses."""
    config = BackboneConfig(vocab_size=vocabulary, d_model=256, n_layers=6, n_heads=4, ff_dim=768)
    tokens = torch.randint(vocabulary - 1, (B, T))
    losses: list[float] = []

    def with_head(head: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], None]:
        ours = Ours(Backbone(config))
        ours.net.init_weights(1)

        def loss(step: int) -> Tensor:
            transformer.weighted_nll = head
            value = ours.loss(tokens, *ours.noise(tokens, step))
            if step == 0:
                losses.append(float(value.detach()))
            return value

        return stepper(ours.net, loss, dtype)

    times = compare(with_head(weighted_nll), with_head(torchs_head), pairs, warmup=1)
    return times, losses[0] / losses[1] - 1


def main() -> None:
    args = arguments(__doc__)
    if not hasattr(F, "linear_cross_entropy"):
        raise SystemExit("torch has no linear_cross_entropy before 2.14: nothing to compare with")
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for vocabulary in VOCABULARIES:
            times, difference = whole_step(vocabulary, dtype, 3 if args.quick else 9)
            rows.append(
                [f"V {vocabulary:,} {str(dtype)[6:]}", f"{times.slow:.3f}", f"{times.fast:.3f}", f"{times.ratio:.2f}",
                 f"{times.low:.2f}-{times.high:.2f}", f"{difference:+.0e}"]
            )  # fmt: skip
    columns = ["", "torch's s", "ours s", "ratio", "quartiles", "loss differs"]
    table("Training step by its head: median of interleaved pairs", columns, rows)


if __name__ == "__main__":
    main()
