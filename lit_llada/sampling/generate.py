"""How does a canvas of masks become text? One loop: predict the masked positions, commit a few of them, again.

The published sampler (2502.09992, section 2.4 and its code): a fixed number of commits per step, lowest confidence
last, optionally block by block. A committed token is never revised. Shapes: B rows, L positions, R masked rows, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from lit_llada.errors import UserError

Order = Literal["low_confidence", "random"]


class Denoiser(Protocol):
    """Anything that says, for chosen positions of a canvas, which token belongs there."""

    def __call__(self, tokens: Tensor, *, rows: Tensor) -> Tensor:
        """``[B, L]`` ids and flat positions ``b*L + i``, ``[R]`` -> logits ``[R, V]``."""
        ...


class State(NamedTuple):
    """The canvas after a step; step 0 is the canvas as it was given.

    Attributes:
        step: how many steps were taken.
        canvas: ``[B, L]`` int64, the mask id where nothing is committed yet.
        committed: ``[B, L]`` bool, the positions that this very step filled.
        confidence: ``[B, L]`` float32, the probability each token had when it was committed; 1 for given tokens and 0
            where the mask still is.
    """

    step: int
    canvas: Tensor
    committed: Tensor
    confidence: Tensor


class Prediction(NamedTuple):
    """Candidates for the open positions, each ``[R]``: token, its probability, and who goes first (highest score)."""

    token: Tensor
    probability: Tensor
    score: Tensor


Predict = Callable[[Tensor, Tensor], Prediction]


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    canvas: Tensor,
    mask_id: int,
    steps: int,
    *,
    block_length: int | None = None,
    order: Order = "low_confidence",
    temperature: float = 0.0,
    forbidden: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """Fill every mask of the canvas, wherever it stands: continuation, free generation and infilling are one thing.

    Args:
        denoiser: the mask predictor, in eval mode.
        canvas: ``[B, L]`` int64; what is not the mask is given and stays.
        mask_id: the mask's id. It is never produced.
        steps: denoiser calls in all, shared evenly among the blocks.
        block_length: a row's masks are filled in blocks of this many, from left to right; None for one block.
        order: commit the most confident candidates first, or uniformly random ones (ancestral sampling).
        temperature: 0 takes the likeliest token, 1 samples from the model. Confidence is always that of temperature 1.
        forbidden: more ids that are never produced; unlike the mask they leave the probabilities altogether.
        generator: source of the noise, on any device; None for the global one of the canvas's device.

    Yields:
        ``steps + 1`` states, the given canvas first. No tensor in them is changed later.

    Raises:
        UserError: fewer steps than blocks, or an option outside its range.
    """
    width = max(canvas.shape[1], 1) if block_length is None else block_length
    if width < 1 or temperature < 0 or order not in ("low_confidence", "random"):
        raise UserError(
            f"sampling: block_length {width}, temperature {temperature}, order {order!r}: one is out of range"
        )
    masked = canvas == mask_id
    block_of = torch.where(masked, (masked.cumsum(1) - 1) // width, -1)  # by the number of the mask in its row
    blocks = max(int(block_of.max()) + 1, 1)
    if steps < blocks:
        raise UserError(f"sampling: {steps} steps are too few for {blocks} blocks of {width}; each needs at least one")

    def predict(canvas: Tensor, rows: Tensor) -> Prediction:
        logits = denoiser(canvas, rows=rows)
        token, probability = choose(logits, mask_id, temperature, forbidden, generator)
        score = uniform(rows.shape, generator, rows.device) if order == "random" else probability
        return Prediction(token, probability, score)

    state = State(0, canvas, torch.zeros_like(masked), torch.where(masked, 0.0, 1.0))
    yield state
    for block, share in enumerate(quota(torch.tensor(steps), blocks).tolist()):
        active = block_of == block
        for commits in quota(active.sum(1).cpu(), share).unbind(1):
            state = commit(state, active & (state.canvas == mask_id), commits, predict)
            yield state


def commit(state: State, open_: Tensor, commits: Tensor, predict: Predict) -> State:
    """One step: predict the open positions and keep, in each row, the best of them.

    Args:
        state: what came before.
        open_: ``[B, L]`` bool, the masked positions that may be filled now.
        commits: ``[B]`` int64 on the CPU, how many of them to fill in each row.
        predict: canvas and flat rows -> candidates with their scores.
    """
    step, (canvas, confidence) = state.step + 1, (state.canvas, state.confidence)
    if not commits.any():  # more steps than tokens: nothing would change, so the net need not run
        return State(step, canvas, torch.zeros_like(open_), confidence)
    rows = open_.flatten().nonzero().squeeze(1)
    new = predict(canvas, rows)
    score = torch.full(canvas.shape, -torch.inf, dtype=new.score.dtype, device=canvas.device)
    score.view(-1)[rows] = new.score
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    now = open_ & (rank < commits.to(canvas.device)[:, None])
    kept = now.flatten()[rows]
    canvas, confidence = canvas.clone(memory_format=torch.contiguous_format), confidence.clone()
    canvas.view(-1)[rows] = torch.where(kept, new.token, canvas.view(-1)[rows])
    confidence.view(-1)[rows] = torch.where(kept, new.probability, confidence.view(-1)[rows])
    return State(step, canvas, now, confidence)


def quota(total: Tensor, steps: int) -> Tensor:
    """Share ``total`` things among ``steps``: ``total // steps`` each, the first ``total % steps`` get one more.

    Args:
        total: any shape, int64.

    Returns:
        int64, one more dimension of length ``steps``.
    """
    extra = torch.arange(steps, device=total.device) < (total % steps)[..., None]
    return (total // steps)[..., None] + extra


def choose(
    logits: Tensor, mask_id: int, temperature: float, forbidden: Sequence[int], generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A token for each row and its probability, both ``[R]``.

    The probability is the model's own: no temperature, no noise, and the mask id keeps its share, as published.
    The noise is float64, since low precision cuts the tail of the distribution (2409.02908).
    """
    logits = logits.float()
    if forbidden:
        logits = logits.index_fill(1, torch.tensor(forbidden, device=logits.device), -torch.inf)
    scores = logits.index_fill(1, torch.tensor([mask_id], device=logits.device), -torch.inf)
    if temperature > 0:
        noise = uniform(scores.shape, generator, scores.device)
        scores = scores.double() - temperature * torch.log(-torch.log(noise))
    token = scores.argmax(1)
    chosen = logits.gather(1, token[:, None]).squeeze(1)
    return token, (chosen - logits.logsumexp(1)).exp()


def uniform(shape: torch.Size, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Float64 uniforms; drawn where the generator lives, so that a CPU generator gives the same on every device."""
    source = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=source).to(device)
