"""How fast are the experts, against a Python loop over them and against a dense block that does the same arithmetic?

64 experts, 8 a token, d 256, expert width 128, 4,096 tokens: router, forward and backward. The dense block is a SwiGLU
of width 8 x 128: what a perfect mixture of experts would cost.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.plain import PlainMoE
from benchmarks.timing import arguments, compare, gemm_peak, table, verdict
from lit_llada.backbone.layers import SwiGLU
from lit_llada.backbone.moe import MoE

TOKENS, WIDTH, HIDDEN, EXPERTS, K = 4_096, 256, 128, 64, 8
FLOPS = 3 * 2 * TOKENS * WIDTH * (K * 3 * HIDDEN + EXPERTS)
BAR = 1.7


def stepper(block: nn.Module, x: Tensor, upstream: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Forward and backward of one block, gradients for the input too."""

    def step() -> None:
        x.grad = None
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            out = block(x)
        (out[0] if isinstance(out, tuple) else out).backward(upstream.to(dtype))

    return step


def main() -> None:
    args = arguments(__doc__)
    ours = MoE(WIDTH, HIDDEN, EXPERTS, K, renormalize=False, bias=False, shared_hidden=0)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=WIDTH**-0.5)
    loop, dense = PlainMoE(WIDTH, HIDDEN, EXPERTS, K).copy_from(ours), SwiGLU(WIDTH, K * HIDDEN)
    x, upstream = torch.randn(1, TOKENS, WIDTH, requires_grad=True), torch.randn(1, TOKENS, WIDTH)
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        step, step_loop, step_dense = (stepper(block, x, upstream, dtype) for block in (ours, loop, dense))
        step()
        gradient = x.grad
        step_loop()
        assert gradient is not None and x.grad is not None
        difference = float((gradient - x.grad).norm() / x.grad.norm())
        pairs = 5 if args.quick else 25
        against_loop, against_dense = compare(step, step_loop, pairs), compare(step, step_dense, pairs)
        rows.append(
            [str(dtype)[6:], f"{1e3 * against_loop.slow:.0f}", f"{1e3 * against_loop.fast:.0f}",
             f"{against_loop.ratio:.2f}", f"{against_loop.low:.2f}-{against_loop.high:.2f}",
             verdict(against_loop.ratio, BAR), f"{1e3 * against_dense.slow:.0f}", f"{1 / against_dense.ratio:.2f}",
             f"{FLOPS / against_loop.fast / gemm_peak(dtype):.0%}", f"{difference:.0e}"]
        )  # fmt: skip
    columns = ["", "loop ms", "ours ms", "ratio", "quartiles", "bar", "dense ms", "ours / dense", "of GEMM peak",
               "gradient differs"]  # fmt: skip
    table("MoE block, forward and backward: median of interleaved pairs", columns, rows)


if __name__ == "__main__":
    main()
