"""The special ids of a vocabulary, and where an answer ends."""

from __future__ import annotations

import pytest

from lit_llada.text.chat_template import ChatTemplate
from lit_llada.text.specials import Specials, until_end
from lit_llada.text.template_choice import choose_template
from lit_llada.text.tokenizer import Tokenizer


def test_ids_of_the_head_that_are_no_token_are_never_written() -> None:
    tokenizer = Tokenizer.byte()
    specials = Specials.of(tokenizer, tokenizer.vocab_size + 3)
    first = tokenizer.vocab_size
    assert specials == Specials(tokenizer.mask_id, tokenizer.eos_id, None, (first, first + 1, first + 2))
    assert Specials.of(tokenizer, tokenizer.vocab_size).forbidden == ()


def test_what_ends_the_turns_of_a_template_ends_an_answer() -> None:
    tokenizer = Tokenizer.byte()
    template: ChatTemplate = choose_template("plain", tokenizer, None)
    assert tokenizer.eos_id in Specials.of(tokenizer, 258, template).ends


@pytest.mark.parametrize(
    ("specials", "ends"),
    [(Specials(9), ()), (Specials(9, 0), (0,)), (Specials(9, 5, 0), (5, 0)), (Specials(9, None, 4), (4,))],
)
def test_an_end_may_have_the_id_0_and_may_be_missing(specials: Specials, ends: tuple[int, ...]) -> None:
    assert specials.ends == ends


def test_an_answer_is_read_to_its_first_end() -> None:
    assert until_end([1, 2, 7, 3, 8], (8, 7)) == ([1, 2], True)
    assert until_end([7, 1], (7,)) == ([], True)
    assert until_end([1, 2], (7,)) == ([1, 2], False)
    assert until_end([], (7,)) == ([], False) and until_end((1, 2), ()) == ([1, 2], False)
