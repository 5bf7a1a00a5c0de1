"""Training: LLaDA-1B against the same net written plainly, and LLaDA-MoE's layers against dense ones.

FLOPs are counted as the Throughput callback does: three times the forward pass, of which half of the positions meet the
vocabulary; recomputation and positions that need not have been computed do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu.measure import Figures, Machine, Measured, Row, attempt, build, largest, measure, release
from benchmarks.plain import PlainTransformer, plain_loss, plain_noise
from benchmarks.timing import verdict
from benchmarks.train_step import Ours, stepper
from lit_llada.backbone.attention import AttentionMask
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.training.sharding import compile_blocks

DENSE_PEAK, SPEED, MEMORY, SPARSE_PEAK, SPARSE_TIME = 0.5, 2.0, 2.0, 0.35, 1.4  # the goals
BACKENDS = ("sdpa", "flash", "varlen")


def training_figures(machine: Machine, config: BackboneConfig, rows: int, length: int, found: Measured) -> Figures:
    figures = found.figures(rows * length) | {"rows": rows}
    if machine.peak is not None:
        figures["of peak"] = 3 * config.flops_per_token(length) * figures["tokens/s"] / machine.peak
    return figures


def peak_goal(figures: Figures, bar: float) -> str:
    return f"of peak {verdict(figures['of peak'], bar)}" if "of peak" in figures else "of peak: unknown card"


def draw(machine: Machine, config: BackboneConfig, rows: int, length: int) -> Tensor:
    """``[rows, length]`` tokens, none of them the mask."""
    return torch.randint(config.vocabulary - 1, (rows, length), device=machine.device)


class OurStep:
    """Our training step at any number of rows; one optimizer, so that its moments are in memory once."""

    def __init__(self, machine: Machine, net: Backbone, length: int) -> None:
        self.machine, self.net, self.length = machine, net, length
        self.tokens, self.mask = torch.empty(0), AttentionMask()
        self.step = stepper(net, self.loss, torch.bfloat16)

    def loss(self, number: int) -> Tensor:
        ours = Ours(self.net, self.mask)
        return ours.loss(self.tokens, *ours.noise(self.tokens, number))

    def at(self, rows: int, document: int | None = None) -> Measured:
        """Measured; with documents of that many tokens, which do not see each other."""
        self.tokens, self.mask = draw(self.machine, self.net.config, rows, self.length), AttentionMask()
        if document is not None:
            place = torch.arange(self.length, device=self.machine.device) // document
            self.mask = AttentionMask(place.expand_as(self.tokens))
        self.net.zero_grad()  # of a step that did not fit
        return measure(self.machine, self.step)


def plain_step(machine: Machine, config: BackboneConfig, rows: int, length: int) -> Measured:
    """A net, its optimizer and its step of the plain kind, made and measured."""
    with machine.device:
        net = PlainTransformer(config)
    tokens = draw(machine, config, rows, length)

    def loss(_step: int) -> Tensor:
        noisy, masked, p_mask = plain_noise(tokens, config.vocabulary - 1)
        return plain_loss(net(noisy), tokens, masked, p_mask)

    return measure(machine, stepper(net, loss, torch.bfloat16))


def dense(machine: Machine) -> Iterator[Row]:
    """LLaDA-1B, plain and ours, eager and compiled; then packed documents with every attention backend by name."""
    config, length, batches = machine.config("1b"), machine.pick(4096, 16), machine.pick((8, 4, 2, 1), (2, 1))
    theirs: dict[int, Measured] = {}  # rows -> what came of them, one entry

    def plainly() -> tuple[Figures, str]:
        rows, found = largest(batches, lambda rows: plain_step(machine, config, rows, length))
        theirs[rows] = found
        return training_figures(machine, config, rows, length, found), ""

    yield attempt("plain, eager", plainly)
    net = build(config, machine.device)
    ours, rows = OurStep(machine, net, length), batches[-1]

    def against(found: Measured, rows: int) -> tuple[Figures, str]:
        """Figures beside those of the plain net, if it fits; memory is compared at an equal number of rows only."""
        figures, goals = training_figures(machine, config, rows, length, found), []
        for its_rows, plain in theirs.items():
            ratio = figures["times plain's tokens/s"] = plain.seconds / its_rows * rows / found.seconds
            goals = [f"times {verdict(ratio, SPEED)}"]
            if its_rows == rows and found.bytes:
                figures["plain's memory over ours"] = plain.bytes / found.bytes
                goals.append(f"memory {verdict(plain.bytes / found.bytes, MEMORY)}")
        return figures, ", ".join([peak_goal(figures, DENSE_PEAK), *goals])

    def eager() -> tuple[Figures, str]:
        nonlocal rows
        rows, found = largest(batches, ours.at)
        return against(found, rows)

    yield attempt("ours, eager", eager)
    for same in theirs:
        yield attempt("ours, eager, as many rows as plain", lambda: against(ours.at(same), same))  # noqa: B023
    compile_blocks(net)
    yield attempt("ours, compiled", lambda: against(ours.at(rows), rows))
    with torch.compiler.set_stance("force_eager"):
        yield from packed(machine, ours, rows, "eager")
    net.residual = torch.bfloat16
    yield attempt("ours, compiled, residual stream in bfloat16", lambda: against(ours.at(rows), rows))
    net.residual = None
    yield from packed(machine, ours, rows, "compiled")


def packed(machine: Machine, ours: OurStep, rows: int, name: str) -> Iterator[Row]:
    """Packed documents, which not every attention backend can run everywhere; one that cannot says why."""
    document = machine.pick(512, 8)

    def run() -> tuple[Figures, str]:
        return ours.at(rows, document).figures(rows * ours.length) | {"rows": rows}, ""

    for backend in BACKENDS:
        ours.net.attention = backend  # type: ignore[assignment]
        yield attempt(f"ours, {name}, documents of {document}, attention {backend}", run)
    ours.net.attention = "auto"


# ---------------------------------------------------------------------------------------------------- experts


def sparse(machine: Machine) -> Iterator[Row]:
    """LLaDA-MoE's layers, as many as fit with AdamW, and dense blocks of equal active FLOPs."""
    whole, length, rows = machine.config("moe_7b_a1b"), machine.pick(4096, 16), machine.pick(4, 2)
    sizes = range(layers_that_fit(whole, rows * length, machine.memory()), 0, -1)
    taken = 0
    for name, prepare in {"eager": lambda net: None, "compiled": compile_blocks}.items():

        def step(layers: int) -> tuple[Measured, Measured]:
            net = build(replace(whole, n_layers=layers), machine.device)
            prepare(net)  # noqa: B023
            training = OurStep(machine, net, length).at(rows)
            return training, measure(machine, blocks_step(machine, net, rows, length))

        def both() -> tuple[Figures, str]:
            nonlocal taken
            taken, (found, blocks) = largest([taken] if taken else sizes, step)
            release()
            dense_net = build(dense_twin(whole, taken), machine.device)
            prepare(dense_net)  # noqa: B023
            dense_blocks = measure(machine, blocks_step(machine, dense_net, rows, length))
            ratio = blocks.seconds / dense_blocks.seconds
            figures = training_figures(machine, replace(whole, n_layers=taken), rows, length, found)
            figures |= {"blocks over dense": ratio, "layers": taken}
            goal = f"{peak_goal(figures, SPARSE_PEAK)}, over dense {verdict(ratio, SPARSE_TIME, at_most=True)}"
            return figures, goal

        yield attempt(name, both)


def layers_that_fit(config: BackboneConfig, tokens: int, memory: int) -> int:
    """How many sparse layers fit in 85 % of ``memory`` with AdamW, at least 1.

    Per parameter 16 bytes of weight, gradient and moments; the experts' weights once more in bfloat16; per token and
    layer what its visits and its attention keep for the backward pass.
    """
    c = config
    layer = c.parameter_count() - replace(c, n_layers=c.n_layers - 1).parameter_count()
    rest = c.parameter_count() - c.n_layers * layer
    visits = c.experts_per_token * (2 * c.d_model + 4 * c.expert_dim)
    kept = tokens * (2 * visits + 2 * 6 * c.d_model + 4 * 6 * c.d_model)
    head = 6 * c.vocabulary * c.d_model + 2**31 * (memory > 2**33)  # W in bfloat16, its gradient, a chunk of logits
    return max(1, min(c.n_layers, int((0.85 * memory - 16 * rest - head) / (18 * layer + kept))))


def dense_twin(config: BackboneConfig, layers: int) -> BackboneConfig:
    """As many blocks whose SwiGLU is as wide as the experts that one token visits."""
    width = config.experts_per_token * config.expert_dim
    return replace(config, n_layers=layers, n_experts=0, expert_dim=0, ff_dim=width)


def blocks_step(machine: Machine, net: Backbone, rows: int, length: int) -> Callable[[], None]:
    """Embedding and blocks, forward and backward."""
    tokens = draw(machine, net.config, rows, length)

    def step() -> None:
        net.zero_grad()
        with machine.autocast():
            x, _ = net.hidden(tokens)
        x.backward(torch.ones_like(x))

    return step
