"""Candidates for the open positions, and the choice of those that a step commits: pure functions.

Shapes: R open positions of all rows together, V vocabulary; b rows of L positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_llada.backbone.layers import widen
from lit_llada.objectives.noise import keyed_uniform
from lit_llada.sampling.canvas import View, id_tensor
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.rules import RULES
from lit_llada.seeding import Stream
from lit_llada.text.specials import Specials

# Numbers of noise made at once: on a CPU they stay in the cache, which makes a draw about twice as fast.
NOISE = {"cpu": 2**18, "cuda": 2**24}


class Candidates:
    """What the net would write, each ``[R]``.

    Attributes:
        token: the candidate.
        probability: its probability, without temperature or noise.
        entropy: entropy of the distribution it came from, nats; 0 unless it was wanted.
        score: float64, the highest goes first.
        postponed: end tokens that have to wait.
    """

    def __init__(self, token: Tensor, probability: Tensor, entropy: Tensor, score: Tensor, postponed: Tensor) -> None:
        self.token, self.probability, self.entropy = token, probability, entropy
        self.score, self.postponed = score, postponed


def find_candidates(
    logits: Tensor, view: View, noise: tuple[Tensor, int], plan: Plan, specials: Specials, entropy: bool
) -> Candidates:
    """A token for each wanted position, its probability and its turn.

    Probabilities are the model's own: forbidden ids (the mask among them) are never candidates but keep their share,
    as in the published code; only ``eos: never`` takes its tokens out altogether, as there.

    Args:
        logits: ``[R, V]``.
        view: where the positions are.
        noise: the seed of each canvas, ``[b]``, and the number of the step.
        plan: temperature, order and EOS rule.
        specials: who must not be produced, who ends.
        entropy: whether to compute entropies.
    """
    logits, width = widen(logits), view.tokens.shape[1]
    keys = noise[0][view.positions // width], noise[1], view.positions % width
    if plan.eos == "never":
        hidden = id_tensor(specials.ends[:1] if plan.official else specials.ends, logits.device)
        logits = logits.index_fill(1, hidden, -torch.inf)
    allowed = logits.index_fill(1, id_tensor((specials.mask, *specials.forbidden), logits.device), -torch.inf)
    token = _draw(allowed, plan.temperature, keys)
    chosen = allowed.gather(1, token[:, None]).squeeze(1)
    late = torch.isin(token, id_tensor(specials.ends, logits.device)) & (plan.eos == "last")
    if plan.official and plan.eos == "last":  # its probabilities know nothing of the end tokens any more
        hidden = id_tensor(specials.ends if plan.temperature == 0 else specials.ends[1:], logits.device)
        logits, late = logits.index_fill(1, hidden, -torch.inf), torch.zeros_like(late)
        chosen = torch.where(torch.isin(token, hidden), -torch.inf, chosen)
    probability = (chosen - logits.logsumexp(1)).exp()
    spread = torch.special.entr(logits.softmax(1)).sum(1) if entropy else torch.zeros_like(probability)
    if plan.order == "margin":
        best = (allowed.topk(2).values - logits.logsumexp(1, keepdim=True)).exp()
        score = best[:, 0] - best[:, 1]
    elif plan.order == "random":
        score = keyed_uniform(*keys, Stream.TURN)
    elif plan.order == "left_to_right":
        score = -keys[2]
    else:
        score = -spread if plan.order == "entropy" else probability
    # Late end tokens come behind everybody else, and keep their order among themselves.
    return Candidates(token, probability, spread, score.double() - late * 2.0**20, late)


def select(plan: Plan, found: Candidates, positions: Tensor, active: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Who is committed in this step.

    Args:
        plan: the count rule and its bound.
        found: candidates, ``[R]``.
        positions: ``[R]`` flat positions of the candidates.
        active: ``[b, L]`` bool, the positions that may be committed; candidates elsewhere are only looked at.
        share: ``[b]`` int64, the quota of each row.

    Returns:
        ``[b, L]`` bool twice: who is committed, and who of them only because nobody passed the rule.
    """

    def grid(values: Tensor, fill: float) -> Tensor:
        full = torch.full(active.shape, fill, dtype=torch.float64, device=active.device)
        full.view(-1)[positions] = values.double()
        return full.masked_fill(~active, fill)

    turn = grid(found.score, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = turn.argsort(dim=1)
    nobody = torch.zeros_like(active)
    if plan.count == "quota":
        return active & (rank < share[:, None]), nobody
    doubt, entropy = 1 - grid(found.probability, 0.0), grid(found.entropy, torch.inf)
    keep = RULES[plan.count].passes(doubt.gather(1, turn), entropy.gather(1, turn), plan.limit).gather(1, rank)
    late = grid(found.postponed, 0.0) > 0
    late = late & ~(late | ~active).all(1, keepdim=True)  # where only end tokens are left, nobody has to wait for them
    keep = keep & active & ~late
    forced = (rank == 0) & active & ~keep.any(1, keepdim=True)
    return keep | forced, forced


def _draw(logits: Tensor, temperature: float, keys: tuple[Tensor, int, Tensor]) -> Tensor:
    """``[R]`` tokens: the argmax, or a sample from softmax(logits / temperature) by the Gumbel maximum.

    The noise is float64, since low precision cuts the tail of the distribution (2409.02908).
    """
    if temperature == 0:
        return logits.argmax(1)
    vocabulary = torch.arange(logits.shape[1], device=logits.device)
    tokens, size = [], max(1, NOISE.get(logits.device.type, 2**24) // logits.shape[1])
    for first in range(0, len(logits), size):
        part = slice(first, first + size)
        noise = keyed_uniform(keys[0][part, None], keys[1], keys[2][part, None], Stream.TOKEN, vocabulary)
        tokens.append((logits[part].double() - temperature * torch.log(-torch.log(noise))).argmax(1))
    return torch.cat(tokens) if tokens else logits.argmax(1)
