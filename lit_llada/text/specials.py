"""The special ids of a vocabulary: the mask, the ends of an answer, and ids that are never written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from lit_llada.text.chat_template import ChatTemplate, turn_end
from lit_llada.text.tokenizer import Tokenizer


class Specials(NamedTuple):
    """The ids that mean something to a sampler.

    Args:
        mask: a position that is still to be filled; never produced.
        eos: end of text.
        eot: end of a chat turn.
        forbidden: more ids that are never produced: padding, headers, ids of the head that are no token.
    """

    mask: int
    eos: int | None = None
    eot: int | None = None
    forbidden: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocabulary: int, template: ChatTemplate | None = None) -> Specials:
        """The ids of a tokenizer.

        Args:
            tokenizer: the vocabulary.
            vocabulary: number of ids that the net's head has; those beyond the tokenizer's are forbidden.
            template: chat template whose end of a turn ends an answer too.
        """
        turn = None if template is None else turn_end(template, tokenizer)
        return cls(tokenizer.mask_id, tokenizer.eos_id, turn, tuple(range(tokenizer.vocab_size, vocabulary)))

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids after which nothing of an answer is read."""
        return tuple(i for i in (self.eos, self.eot) if i is not None)


def until_end(ids: Sequence[int], ends: Collection[int]) -> tuple[list[int], bool]:
    """The ids before the first end, and whether there was one."""
    stop = next((i for i, token in enumerate(ids) if token in ends), None)
    return [*ids[:stop]], stop is not None
