"""How fast is a VRPO step, and how much memory does it take, against the same step written plainly?

n = 8 draws, two preference pairs, prompts and answers of 64 tokens each, V 32,768, d 256, 6 layers. Plainly: two
models, logits of every position through the whole vocabulary, and all draws in one graph. Ours: only masked tokens of
the answers meet the vocabulary, two passes with one draw's graph at a time, and a reference that is a frozen twin
(live) or a file (cached). Same weights, same masks; the gradients are compared before the clock starts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.plain import PlainTransformer
from benchmarks.timing import arguments, compare, peak_memory, table, verdict
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.data.batch import AnswerBatch
from lit_llada.modules.predict import Masked, locate, predict, sum_over_answers
from lit_llada.objectives.preference import (
    Draws,
    Estimator,
    draw_masks,
    estimate,
    preference_loss,
    score,
)
from lit_llada.objectives.two_pass import two_pass

PAIRS, PROMPT, ANSWER, VOCABULARY, BETA = 2, 64, 64, 32_768, 0.2
SPEED_BAR, MEMORY_BAR = 1.5, 3.0


def make_batch(
    vocabulary: int = VOCABULARY, rows: int = 2 * PAIRS, prompt: int = PROMPT, answer: int = ANSWER
) -> AnswerBatch:
    """Random pairs on torch's default device, one answer to a row."""
    length = prompt + answer
    tokens = torch.randint(vocabulary - 1, (rows, length))
    answers = torch.arange(answer) + prompt + torch.arange(rows)[:, None] * length
    keys = torch.arange(rows // 2).repeat(2)
    return AnswerBatch(tokens, torch.zeros_like(tokens), answers, keys, keys)


def loss_of(draws: Draws, sums: Tensor, reference: Tensor) -> Tensor:
    policy, tied = (estimate(draws, x).view(2, -1) for x in (sums, reference))
    return preference_loss(score(policy, tied, BETA), BETA).sum()


def our_sums(net: Backbone, batch: AnswerBatch, place: Masked) -> Tensor:
    """``[2P]`` sums of log p over the masked tokens of one draw."""
    return sum_over_answers(predict(net, batch, place, net.config.vocabulary - 1), len(batch.keys))


@torch.no_grad()
def our_reference(net: Backbone, batch: AnswerBatch, draws: Draws) -> Tensor:
    """``[n, 2P]``, the same for all draws."""
    return torch.stack([our_sums(net, batch, place) for place in locate(batch, draws.masked)])


def our_step(net: Backbone, twin: Backbone | None, cache: Tensor, batch: AnswerBatch, draws: Draws) -> None:
    """Gradients of a step; with a twin the reference is asked, without one the cache is read."""
    places, mask_id = locate(batch, draws.masked), net.config.vocabulary - 1

    def weighted(draw: int, slopes: Tensor) -> Tensor:
        loss = predict(net, batch, places[draw], mask_id, -slopes).loss
        assert loss is not None  # weights were given
        return loss

    if twin is not None:
        cache = our_reference(twin, batch, draws)
    rest, _ = two_pass(
        lambda draw: (our_sums(net, batch, places[draw]), None),
        len(places),
        lambda s: loss_of(draws, s, cache),
        weighted=weighted,
    )
    rest.backward()


def plain_sums(net: PlainTransformer, batch: AnswerBatch, draws: Draws) -> Tensor:
    """``[n, 2P]`` with the logits of every position, draw by draw."""
    found, mask_id = [], net.config.vocabulary - 1
    for masked in draws.masked:
        where = F.pad(masked, (batch.tokens.shape[1] - masked.shape[1], 0))
        logits = net(torch.where(where, mask_id, batch.tokens)).float()
        logs = logits.log_softmax(-1).gather(-1, batch.tokens[..., None]).squeeze(-1)
        found.append((logs * where).sum(1))
    return torch.stack(found)


def plain_step(net: PlainTransformer, twin: PlainTransformer, batch: AnswerBatch, draws: Draws) -> None:
    with torch.no_grad():
        reference = plain_sums(twin, batch, draws)
    loss_of(draws, plain_sums(net, batch, draws), reference).backward()


def main() -> None:
    args = arguments(__doc__)
    config = BackboneConfig(vocab_size=VOCABULARY, d_model=256, n_layers=6, n_heads=4, ff_dim=768)
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        net = Backbone(config)
        twin = copy.deepcopy(net).requires_grad_(False)
        for parameter in net.parameters():  # a policy that has moved away from its reference
            parameter.data += 0.02 * parameter.std() * torch.randn_like(parameter)
        plain, plain_twin = (PlainTransformer(config).copy_from(n) for n in (net, twin))
        batch = make_batch()
        draws = draw_masks(batch.lengths, torch.arange(2 * PAIRS), 1, Estimator(), ANSWER)
        with torch.no_grad():
            cache = plain_sums(plain_twin, batch, draws)

        def within(step: Callable[[], None], *nets: torch.nn.Module) -> Callable[[], None]:
            def run() -> None:
                for one in nets:
                    one.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):  # noqa: B023
                    step()

            return run

        slow = within(lambda: plain_step(plain, plain_twin, batch, draws), plain)  # noqa: B023
        for name, reference in {"live": twin, "cached": None}.items():
            fast = within(lambda: our_step(net, reference, cache, batch, draws), net)  # noqa: B023
            fast(), slow()
            mine, theirs = net.embed.weight.grad, plain.embed_tokens.weight.grad
            difference = float((mine - theirs).norm() / theirs.norm())
            times = compare(fast, slow, 2 if args.quick else 7, warmup=1)
            ours, big = peak_memory(fast) / 2**20, peak_memory(slow) / 2**20
            rows.append(
                [f"{str(dtype)[6:]}, {name}", f"{times.slow:.2f}", f"{times.fast:.2f}", f"{times.ratio:.2f}",
                 f"{times.low:.2f}-{times.high:.2f}", verdict(times.ratio, SPEED_BAR), f"{big:,.0f}", f"{ours:,.0f}",
                 verdict(big / ours, MEMORY_BAR), f"{difference:.0e}"]
            )  # fmt: skip
    columns = ["", "plain s", "ours s", "ratio", "quartiles", "bar", "plain MiB", "ours MiB", "bar", "gradient differs"]
    table("VRPO step, n = 8: median of interleaved pairs; peak extra memory", columns, rows)


if __name__ == "__main__":
    main()
