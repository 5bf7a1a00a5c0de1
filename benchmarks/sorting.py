"""What does a small net learn in minutes that a hasty sampler gets wrong? To sort numbers in a direction nobody names.

A prompt is 4 to 10 distinct numbers, its answer the same numbers ascending or descending, as a coin falls that is not
in the prompt, and EOS up to a fixed length. A sampler that commits several tokens before the direction is settled
mixes the two. How well a token is predicted depends on what the prompt's own states know of the answer so far, so the
task is hard on caches too.

Shapes: B rows, L = longest prompt, separator and answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_llada.backbone.attention import AttentionMask
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.objectives.diffusion import bound_weights
from lit_llada.objectives.noise import mask_tokens, sample_times
from lit_llada.sampling.canvas import Specials
from lit_llada.training.optimizers import make_optimizer
from lit_llada.training.schedules import Schedule

NUMBERS, ANSWER, FEWEST, MOST = 32, 16, 4, 10
SEPARATOR, EOS, MASK = NUMBERS, NUMBERS + 1, NUMBERS + 2
SPECIALS = Specials(mask=MASK, eos=EOS, forbidden=(SEPARATOR,))


def draw_rows(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Fresh examples.

    Returns:
        ``tokens [B, L]``: prompt, separator, answer, and EOS as padding; ``real [B, L]`` bool, False for the padding;
        ``maskable [B, L]`` bool, the answer.
    """
    count = torch.randint(FEWEST, MOST + 1, (rows, 1), generator=generator)
    numbers = torch.rand(rows, NUMBERS, generator=generator).argsort(1)[:, :MOST]
    descending = torch.rand(rows, 1, generator=generator) < 0.5
    key = torch.where(descending, NUMBERS - 1 - numbers, numbers)
    key = torch.where(torch.arange(MOST) < count, key, EOS).sort(1).values  # EOS comes behind every number
    answer = torch.where(descending & (key < NUMBERS), NUMBERS - 1 - key, key)
    answer = torch.cat((answer, torch.full((rows, ANSWER - MOST), EOS)), dim=1)

    place = torch.arange(MOST + 1 + ANSWER) - count - 1  # within the answer
    tokens = torch.where(place < 0, SEPARATOR, answer.gather(1, place.clamp(0, ANSWER - 1)))
    tokens[:, :MOST] = torch.where(place[:, :MOST] < -1, numbers, tokens[:, :MOST])
    real = place < ANSWER
    return torch.where(real, tokens, EOS), real, real & (place >= 0)


def solved(tokens: Tensor, maskable: Tensor) -> Tensor:
    """``[B]`` bool, whether the answer is the prompt's numbers in either order and nothing else."""
    answer = tokens[maskable].view(len(tokens), ANSWER)
    prompt = torch.where(maskable | (tokens >= NUMBERS), EOS, tokens)[:, :MOST].sort(1).values
    count = (prompt < NUMBERS).sum(1, keepdim=True)
    place = torch.arange(MOST)
    backward = torch.where(place < count, prompt.gather(1, (count - 1 - place).clamp(min=0)), EOS)
    right = (answer[:, :MOST] == prompt).all(1) | (answer[:, :MOST] == backward).all(1)
    return right & (answer[:, MOST:] == EOS).all(1)


def train(steps: int, rows: int = 128, lr: float = 5e-3) -> tuple[Backbone, float]:
    """A net taught by fine-tuning's objective: only answers are masked, and every row gives its bound per answer token.

    Returns:
        the net in eval mode, and the mean loss of the last tenth of the steps, nats per token.
    """
    net = Backbone(BackboneConfig(vocab_size=MASK + 1, d_model=128, n_layers=3, n_heads=4, ff_dim=256))
    optimizer = make_optimizer(net, "muon", lr, 0.01, (0.9, 0.95))
    schedule, generator = Schedule(warmup_steps=steps // 20, kind="cosine"), torch.Generator().manual_seed(1)
    late = []
    for step in range(steps):
        tokens, real, maskable = draw_rows(rows, generator)
        keys = torch.arange(step * rows, (step + 1) * rows)
        t = sample_times(keys, 1, sampler="stratified", strata=rows)
        noisy, masked, p_mask = mask_tokens(tokens, maskable, t, keys, MASK, 1, masking="fixed_count")
        where = masked.flatten().nonzero().squeeze(1)
        scale = bound_weights(where, p_mask, tokens.shape[1])
        total, _, _ = net.weighted_nll(noisy, tokens, where, scale, AttentionMask(padding=real))
        loss = total / maskable.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule.factor(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        late.append(loss.item())
    return net.eval(), sum(late[-(steps // 10) :]) / (steps // 10)
