"""Questions are what is trained on; replies do not depend on their batch; the choice does not depend on its size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_llada.data.folder import DataFolder, Record, read_records
from lit_llada.errors import UserError
from lit_llada.evaluation.exact_match import (
    Question,
    Reply,
    canvas_length,
    choose_questions,
    load_answerer,
    questions_of,
    replies,
    to_questions,
)
from lit_llada.metrics.exact_match import RightByTask
from lit_llada.sampling.plan import Plan
from lit_llada.text.chat_template import ChatTemplate
from lit_llada.text.specials import Specials
from lit_llada.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.byte()
TEMPLATE = ChatTemplate.named("plain", TOKENIZER)
SPECIALS = Specials.of(TOKENIZER, 260, TEMPLATE)


class Lookup:
    """Surely writes what stands behind each prompt, and the end of text behind that; counts its rows."""

    def __init__(self, questions: list[Question], said: list[bytes]) -> None:
        self.said = {tuple(q.ids): [*text] for q, text in zip(questions, said, strict=True)}
        self.batches: list[int] = []

    def __call__(self, tokens: Tensor, mask: Any, rows: Tensor) -> Tensor:
        self.batches.append(len(tokens))
        logits = torch.zeros(len(rows), 260)
        for row, flat in enumerate(rows.tolist()):
            ids, at = tokens[flat // tokens.shape[1]].tolist(), flat % tokens.shape[1]
            prompt = next(p for p in self.said if tuple(ids[: len(p)]) == p)
            text = self.said[prompt]
            logits[row, text[at - len(prompt)] if at - len(prompt) < len(text) else TOKENIZER.eos_id] = 9.0
            logits[row, 258:] = 20.0  # rows of no token: never produced
        return logits


def ask(questions: list[Question], said: list[bytes], new_tokens: int = 8, **options: Any) -> tuple[list[Reply], Any]:
    net = Lookup(questions, said)
    found = replies(net, questions, new_tokens, TOKENIZER, SPECIALS, Plan(), seeds=range(len(questions)), **options)
    return [reply for _, reply in sorted(found)], net


def record(prompt: str, answer: str, template: str = "") -> Record:
    return Record(prompt, answer, template, [{"role": "user", "content": prompt}])


def test_a_question_is_the_record_as_it_is_trained_on(taught: Any) -> None:
    folder = DataFolder.open(taught.data)
    questions, _ = questions_of([folder], "val")
    records = read_records(taught.data, "val")
    lengths = folder.lengths["val"][:, 0]
    for question, row, length in zip(questions, records, lengths, strict=True):
        assert (question.prompt, question.answer, question.task) == (row.prompt, row.answer, row.task)
        assert len(question.ids) + question.length == length
        assert TOKENIZER.decode(question.ids, eos="|") == f"user:\n{row.prompt}|assistant:\n"
    dialogue = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    [last] = to_questions([Record("c", "d", "", dialogue)], TEMPLATE, TOKENIZER)
    assert TOKENIZER.decode(last.ids, eos="|") == "user:\na|assistant:\nb|user:\nc|assistant:\n"
    assert (last.answer, last.task, last.length) == ("d", "records", 2)


def test_replies_are_cut_at_their_first_end_and_do_not_depend_on_the_batch() -> None:
    questions = to_questions([record("a" * n, "x") for n in (1, 9, 4)], TEMPLATE, TOKENIZER)
    said = [b"one", b"", b"much too long"]
    expected = [Reply("one", True), Reply("", True), Reply("much too", False)]
    for size in (1, 2, 3):
        found, net = ask(questions, said, batch_size=size)
        assert found == expected and max(net.batches) == size


def test_the_choice_is_balanced_nested_and_by_seed() -> None:
    questions = [Question([1], "a", 1, str(i), "ab"[i % 3 == 0]) for i in range(30)]
    few, many = choose_questions(questions, 3, seed=1), choose_questions(questions, 100, seed=1)
    assert [q.task for q in few] == ["a"] * 3 + ["b"] * 3
    assert sorted(q.prompt for q in many) == sorted(q.prompt for q in questions)
    assert few[:3] == many[:3] and few[3:] == many[20:23]
    assert choose_questions(questions, 3, seed=2) != few
    match = RightByTask(question.task for question in few)
    match.update(torch.tensor([True, False, True, False, False, False]), [question.task for question in few])
    assert match.compute() == {"a": (2, 3), "b": (0, 3)}


def test_the_canvas_holds_the_longest_answer_with_its_end() -> None:
    for text, block, length in (("x" * 7, None, 8), ("x" * 8, None, 16), ("x" * 8, 3, 9), ("x", 32, 32)):
        questions = to_questions([record("p", "y"), record("q", text)], TEMPLATE, TOKENIZER)
        assert canvas_length(questions, block) == length


def test_a_checkpoint_of_another_vocabulary_is_refused(taught: Any) -> None:
    assert load_answerer(taught.checkpoint, TOKENIZER, "data", None, "cpu").config.vocabulary == 258
    other = Tokenizer.train_bpe(["some text to learn from"] * 3, 258)  # of the same size, so only its digest tells
    for tokenizer in (other, Tokenizer.train_bpe(["some text to learn from"] * 3, 265)):
        with pytest.raises(UserError, match="and data are of different vocabularies"):
            load_answerer(taught.checkpoint, tokenizer, "data", None, "cpu")
