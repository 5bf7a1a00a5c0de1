"""How fast is a whole training step, and how much memory does its loss take, against the same net written plainly?

Dense, d 256, 6 layers, 4 heads, feed-forward 768, batch 16 x 256: noise, forward, loss, backward, fused AdamW.
Both sides have the same weights, and their losses on the same noise are compared before the clock starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.plain import PlainTransformer, plain_loss, plain_noise
from benchmarks.timing import Comparison, arguments, compare, gemm_peak, peak_memory, table, verdict
from lit_llada.backbone.attention import AttentionMask
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.head import weighted_nll
from lit_llada.backbone.transformer import Backbone
from lit_llada.objectives.diffusion import bound_weights
from lit_llada.objectives.noise import mask_tokens, sample_times

B, T = 16, 256
BARS = {(32_768, torch.bfloat16): 3.0, (32_768, torch.float32): 2.0, (4_096, torch.bfloat16): 1.5}
BARS[4_096, torch.float32] = 1.5
MEMORY_BAR = 12.0


class Ours(NamedTuple):
    """Our net, and its loss on given or fresh noise."""

    net: Backbone
    mask: AttentionMask | None = None

    def loss(self, tokens: Tensor, noisy: Tensor, masked: Tensor, p_mask: Tensor) -> Tensor:
        positions = masked.flatten().nonzero().squeeze(1)
        weights = bound_weights(positions, p_mask, tokens.shape[1])
        return self.net.weighted_nll(noisy, tokens, positions, weights, self.mask)[0] / tokens.numel()

    def noise(self, tokens: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = len(tokens)
        keys = torch.arange(step * rows, (step + 1) * rows, device=tokens.device)
        maskable = torch.ones_like(tokens, dtype=torch.bool)
        return mask_tokens(tokens, maskable, sample_times(keys, 1), keys, self.net.config.vocabulary - 1, 1)


def stepper(net: nn.Module, loss: Callable[[int], Tensor], dtype: torch.dtype) -> Callable[[], None]:
    """One training step a call, where the net is; ``loss`` gets the number of the step."""
    device = next(net.parameters()).device.type
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer, count = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.1, fused=True), iter(range(10**9))

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype is torch.bfloat16):
            value = loss(next(count))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def whole_step(vocabulary: int, dtype: torch.dtype, pairs: int) -> tuple[Comparison, float, float]:
    """Times of a step, the difference of the two losses, and our FLOPs a step."""
    config = BackboneConfig(vocab_size=vocabulary, d_model=256, n_layers=6, n_heads=4, ff_dim=768)
    ours = Ours(Backbone(config))
    plain = PlainTransformer(config).copy_from(ours.net)
    tokens = torch.randint(vocabulary - 1, (B, T))

    def plain_step_loss(step: int) -> Tensor:
        noisy, masked, p_mask = plain_noise(tokens, vocabulary - 1)
        return plain_loss(plain(noisy), tokens, masked, p_mask)

    noisy, masked, p_mask = ours.noise(tokens, 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        theirs = plain_loss(plain(noisy), tokens, masked, p_mask)
        difference = float(ours.loss(tokens, noisy, masked, p_mask) / theirs - 1)
    fast = stepper(ours.net, lambda step: ours.loss(tokens, *ours.noise(tokens, step)), dtype)
    slow = stepper(plain, plain_step_loss, dtype)
    return compare(fast, slow, pairs), difference, 3 * config.flops_per_token(T) * B * T


def loss_memory(vocabulary: int, dtype: torch.dtype) -> tuple[int, int]:
    """Peak bytes of head and loss, forward and backward, ours and plain; half of the tokens are masked.

    The gradients of the hidden states and of the head are on both sides, so they are allocated beforehand.
    """
    hidden = torch.randn(B * T, 256, requires_grad=True)
    weight = torch.randn(vocabulary, 256, requires_grad=True)
    tokens, positions = torch.randint(vocabulary, (B, T)), torch.arange(0, B * T, 2)
    masked = torch.zeros(B * T, dtype=torch.bool).index_fill(0, positions, True).view(B, T)
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)

    def ours() -> None:
        loss, _ = weighted_nll(hidden[positions], weight, None, tokens.flatten()[positions], torch.ones(len(positions)))
        (loss / tokens.numel()).backward()

    def plain() -> None:
        plain_loss((hidden @ weight.T).view(B, T, -1), tokens, masked, torch.ones(B)).backward()

    peaks = []
    for step in (ours, plain):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            peaks.append(peak_memory(step))
    return peaks[0], peaks[1]


def main() -> None:
    args = arguments(__doc__)
    steps: list[list[str]] = []
    memory: list[list[str]] = []
    peaks = {dtype: gemm_peak(dtype) for dtype in (torch.bfloat16, torch.float32)}
    for (vocabulary, dtype), bar in BARS.items():
        name = f"V {vocabulary:,} {str(dtype)[6:]}"
        times, difference, flops = whole_step(vocabulary, dtype, 3 if args.quick else 9)
        share = flops / times.fast / peaks[dtype]
        steps.append(
            [name, f"{times.slow:.3f}", f"{times.fast:.3f}", f"{times.ratio:.2f}", f"{times.low:.2f}-{times.high:.2f}",
             verdict(times.ratio, bar), f"{B * T / times.fast:,.0f}", f"{share:.0%}", f"{difference:+.0e}"]
        )  # fmt: skip
        mine, theirs = loss_memory(vocabulary, dtype)
        reached = verdict(theirs / mine, MEMORY_BAR) if vocabulary == 32_768 else ""
        memory.append([name, f"{theirs / 2**20:,.0f}", f"{mine / 2**20:,.0f}", f"{theirs / mine:.1f}", reached])
    columns = ["", "plain s", "ours s", "ratio", "quartiles", "bar", "tokens/s", "of GEMM peak", "loss differs"]
    table("Training step: median of interleaved pairs", columns, steps)
    table("Head and loss alone: peak extra memory", ["", "plain MiB", "ours MiB", "ratio", "bar"], memory)
    print("GEMM peak measured here: " + ", ".join(f"{str(d)[6:]} {p / 1e9:,.0f} GFLOP/s" for d, p in peaks.items()))


if __name__ == "__main__":
    main()
