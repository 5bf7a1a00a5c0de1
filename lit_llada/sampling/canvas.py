"""The canvas that a sampler fills, its states, and what a step asks of a net.

Shapes: B rows, L positions, R rows of logits, V vocabulary; b <= B rows that are not finished yet.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lit_llada.backbone.attention import AttentionMask
from lit_llada.errors import UserError
from lit_llada.text.specials import Specials, until_end

Canvas = list[int]  # a sequence that is being filled: ids, with the mask's where something is to be written


@functools.lru_cache(maxsize=64)
def id_tensor(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """``[n]`` int64, made once for each device, because a copy from the host is a wait for it. Not to be changed."""
    return torch.tensor(ids, dtype=torch.int64, device=device)


class Denoiser(Protocol):
    """A net, or what can be called like one: it says which token belongs at chosen positions of a canvas."""

    def __call__(self, tokens: Tensor, mask: AttentionMask | None, positions: Tensor, /) -> Tensor:
        """``[B, L]`` ids, who sees whom, and flat positions ``b * L + i``, ``[R]`` -> logits ``[R, V]``."""
        ...


class View(NamedTuple):
    """What the sampler asks in one step.

    Attributes:
        tokens: ``[b, L]`` the canvases of the rows that are not finished.
        real: ``[b, L]`` bool, False where a shorter row is padded; None when nothing is.
        positions: ``[R]`` flat positions ``b * L + i`` in ``tokens`` whose logits are wanted.
        ids: ``[b]`` which rows of the whole batch these are.
        given: ``[b, L]`` bool, the positions that were given: the prompt.
        window: ``[b, L]`` bool, the block that is being filled, its committed positions too.
        fresh: ``[b]`` bool, rows whose block begins with this step.
    """

    tokens: Tensor
    real: Tensor | None
    positions: Tensor
    ids: Tensor
    given: Tensor
    window: Tensor
    fresh: Tensor


# Answers a view with logits [R, V]; :class:`~lit_llada.sampling.predictor.Predictor` has those that there are.
Predict = Callable[[View], Tensor]


class Reason(IntEnum):
    """Why a position changed in a step."""

    NONE = 0  # it did not
    SELECTED = 1  # the rule took it
    FORCED = 2  # no position passed the rule, so the best was taken
    REMASKED = 3  # taken back
    ENDED = 4  # filled with EOS behind an answer that had ended
    GROWN = 5  # a new masked position at the end of the row
    SHRUNK = 6  # a masked position at the end of the row is gone


class State(NamedTuple):
    """The canvas after a step; step 0 is the canvas as it was given. No tensor in it is changed later.

    Attributes:
        step: how many steps were taken.
        canvas: ``[B, L]`` int64, the mask id where nothing is committed yet.
        real: ``[B, L]`` bool, False for padding.
        reason: ``[B, L]`` uint8, the :class:`Reason` of what this very step did to each position.
        confidence: ``[B, L]`` float32, the probability each token had when it was committed; 1 for given tokens and 0
            where the mask still is.
        entropy: ``[B, L]`` float32 nats, of the prediction a token was committed from; 0 elsewhere, and everywhere
            unless the run was asked for details.
        predicted: ``[B, L]`` int64, what this step would have written where it looked; the canvas elsewhere.
        probability: ``[B, L]`` float32, of ``predicted``; 0 where this step did not look.
        forwards: ``[B]`` int64, how often the net has been asked for each row.
    """

    step: int
    canvas: Tensor
    real: Tensor
    reason: Tensor
    confidence: Tensor
    entropy: Tensor
    predicted: Tensor
    probability: Tensor
    forwards: Tensor

    @property
    def committed(self) -> Tensor:
        """``[B, L]`` bool, the positions that this very step filled."""
        r = self.reason
        return (r == Reason.SELECTED) | (r == Reason.FORCED) | (r == Reason.ENDED)


def prompt_canvases(
    prompts: Sequence[Sequence[int]],
    new_tokens: int | Sequence[int],
    specials: Specials,
    *,
    block_length: int | None = None,
    context: int | None = None,
) -> list[Canvas]:
    """Canvases of prompts, each with its masks right behind it; arguments and errors of :func:`lay_out`."""
    lengths = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else list(new_tokens)
    canvases = []
    for number, (prompt, new) in enumerate(zip(prompts, lengths, strict=True), 1):
        if not prompt:
            raise UserError(f"prompt {number} is empty; give it at least one token")
        if specials.mask in prompt:
            raise UserError(f"prompt {number} contains the mask token (id {specials.mask}); remove it from the text")
        if new < 1:
            raise UserError(f"prompt {number}: {new} new tokens; ask for at least one")
        if block_length and new % block_length:
            raise UserError(f"block_length {block_length} does not divide the {new} new tokens of prompt {number}")
        if context and len(prompt) + new > context:
            raise UserError(
                f"prompt {number}: {len(prompt)} tokens and {new} new ones exceed the context of {context}; "
                "shorten the prompt or ask for fewer"
            )
        canvases.append([*prompt, *[specials.mask] * new])
    return canvases


def pad_canvases(canvases: Sequence[Canvas], specials: Specials) -> tuple[Tensor, Tensor]:
    """``canvas [B, L]`` int64 and ``real [B, L]`` bool of canvases of any lengths, padding at the far right.

    No canvas depends on its batch mates: nobody sees padding, and places count from each row's own beginning.
    """
    width = max(map(len, canvases))
    pad = 0 if specials.eos is None else specials.eos
    padded = torch.tensor([canvas + [pad] * (width - len(canvas)) for canvas in canvases])
    return padded, torch.tensor([[i < len(canvas) for i in range(width)] for canvas in canvases])


def lay_out(
    prompts: Sequence[Sequence[int]],
    new_tokens: int | Sequence[int],
    specials: Specials,
    *,
    block_length: int | None = None,
    context: int | None = None,
) -> tuple[Tensor, Tensor]:
    """A batch of prompts of any lengths as canvases: prompt, right behind it the masks, see :func:`pad_canvases`.

    Args:
        prompts: ids of each prompt.
        new_tokens: masks behind each prompt, for all or for each.
        specials: ids of the mask and of what pads.
        block_length: length of a block, which must divide ``new_tokens``; None for no blocks.
        context: the longest sequence the net was made for; None for no limit.

    Returns:
        ``canvas [B, L]`` int64 and ``real [B, L]`` bool.

    Raises:
        UserError: an empty prompt, a mask token in a prompt, no room in the context, a block that does not divide.
    """
    canvases = prompt_canvases(prompts, new_tokens, specials, block_length=block_length, context=context)
    return pad_canvases(canvases, specials)


def read_answers(state: State, prompts: Sequence[Sequence[int]], specials: Specials) -> list[list[int]]:
    """What was written behind each prompt, up to (not including) the first end of text or turn."""
    answers = []
    for row, real, prompt in zip(state.canvas.tolist(), state.real.tolist(), prompts, strict=True):
        answer = [token for token, kept in zip(row, real, strict=True) if kept][len(prompt) :]
        answers.append(until_end(answer, specials.ends)[0])
    return answers
