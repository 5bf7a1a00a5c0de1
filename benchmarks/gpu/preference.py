"""VRPO at 1B against two nets with all draws in one graph, and adapters on LLaDA-8B: SFT and VRPO."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.gpu.measure import Figures, Machine, Measured, Row, attempt, build, largest, measure, release
from benchmarks.train_step import stepper
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.data.batch import AnswerBatch
from lit_llada.modules.predict import locate, predict
from lit_llada.objectives.diffusion import answer_weights
from lit_llada.objectives.noise import mask_tokens, sample_times
from lit_llada.objectives.preference import Draws, Estimator, draw_masks

DRAWS, ROWS = 8, 4  # two pairs


def pairs(machine: Machine, config: BackboneConfig, half: int) -> tuple[AnswerBatch, Draws]:
    """Two pairs, prompts and answers of ``half`` tokens each, and the masks of a step."""
    from benchmarks.vrpo_step import make_batch

    with machine.device:
        batch = make_batch(config.vocabulary, ROWS, half, half)
        draws = draw_masks(batch.lengths, torch.arange(ROWS), 1, Estimator(times=DRAWS), half)
    return batch, draws


def within(machine: Machine, net: nn.Module, step: Callable[[], None]) -> Callable[[], None]:
    """Gradients from nothing, under autocast."""

    def run() -> None:
        net.zero_grad()
        with machine.autocast():
            step()

    return run


def vrpo(machine: Machine) -> Iterator[Row]:
    """Gradients of a step at 1B, n = 8; the optimizer is the same on both sides and left out."""
    from benchmarks.plain import PlainTransformer
    from benchmarks.vrpo_step import our_step, plain_step

    config = machine.config("1b")

    def plain(half: int) -> Measured:
        with machine.device:
            net, twin = PlainTransformer(config), PlainTransformer(config).requires_grad_(False)
        batch, draws = pairs(machine, config, half)
        return measure(machine, within(machine, net, lambda: plain_step(net, twin, batch, draws)), steps=3, warmup=1)

    def ours(half: int) -> Measured:
        net, twin = build(config, machine.device), build(config, machine.device).requires_grad_(False)
        batch, draws = pairs(machine, config, half)
        step = within(machine, net, lambda: our_step(net, twin, torch.empty(0), batch, draws))
        return measure(machine, step, steps=3, warmup=1)

    half, slow = machine.pick(128, 8), Measured(0, 0)

    def theirs() -> tuple[Figures, str]:
        nonlocal half, slow
        half, slow = largest((half, half // 2, half // 4), plain)
        return slow.figures(2 * ROWS * half) | {"answer": half}, ""

    def both() -> tuple[Figures, str]:
        found = ours(half)
        figures = found.figures(2 * ROWS * half) | {"answer": half}
        if slow.seconds:
            figures["times as fast"] = slow.seconds / found.seconds
        if slow.bytes:
            figures["plain's memory over ours"] = slow.bytes / found.bytes
        return figures, ""

    yield attempt("two nets, all draws in one graph", theirs)
    yield attempt("ours, two passes, live reference", both)


def lora(machine: Machine) -> Iterator[Row]:
    """Adapters on a frozen base in bfloat16, each block recomputed in the backward pass."""
    import peft  # noqa: F401  (missing: the whole part is skipped)

    from benchmarks.vrpo_step import our_reference, our_step
    from lit_llada.training.lora import LoRA, adapters_off, add_adapters, init_adapters

    with torch.device("meta"):
        net = Backbone(machine.config("8b"))
    add_adapters(net, LoRA(base="bfloat16"))
    net.checkpointing = True
    net.to_empty(device=machine.device)
    net.init_weights(1)
    init_adapters(net, 1)
    release()
    rows, length, half = machine.pick((2, 4096, 256), (2, 16, 8))

    def fine_tuning() -> tuple[Figures, str]:
        batch = answers(machine, net.config, rows, length)
        step = stepper(net, lambda number: sft_loss(net, batch, number), torch.bfloat16)
        return measure(machine, step, steps=3, warmup=1).figures(rows * length), ""

    def preferences() -> tuple[Figures, str]:
        batch, draws = pairs(machine, net.config, half)

        def step() -> None:
            with adapters_off(net):
                reference = our_reference(net, batch, draws)
            our_step(net, None, reference, batch, draws)

        return measure(machine, within(machine, net, step), steps=2, warmup=1).figures(2 * ROWS * half), ""

    yield attempt(f"SFT, {rows} x {length}, AdamW", fine_tuning)
    yield attempt(f"VRPO, {ROWS // 2} pairs of {2 * half} tokens, n = {DRAWS}, gradients", preferences)


def answers(machine: Machine, config: BackboneConfig, rows: int, length: int) -> AnswerBatch:
    """Random prompts with answers, half and half."""
    from benchmarks.vrpo_step import make_batch

    with machine.device:
        return make_batch(config.vocabulary, rows, length // 2, length // 2)


def sft_loss(net: Backbone, batch: AnswerBatch, number: int) -> Tensor:
    """The loss of an SFT step as the paper has it: answers masked, each divided by its length."""
    inside, keys, mask_id = batch.answers >= 0, batch.keys + number * len(batch.keys), net.config.vocabulary - 1
    noised = mask_tokens(batch.tokens.flatten()[batch.answers], inside, sample_times(keys, 1), keys, mask_id, 1)
    weight, count = answer_weights(noised.p_mask, noised.masked, batch.lengths, "sequence")
    (where,) = locate(batch, noised.masked[None])
    loss = predict(net, batch, where, mask_id, weight).loss
    assert loss is not None  # weights were given
    return loss / count
