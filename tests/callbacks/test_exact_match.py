"""Answers are counted by template, reach TensorBoard, and leave no trace in the training."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tensorboard.plugin_util import markdown_to_safe_html

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.callbacks.ema import EMA
from lit_llada.callbacks.exact_match import ExactMatch, replies_table
from lit_llada.checkpoint.own import write_run
from lit_llada.checkpoint.source import read_files
from lit_llada.data.answer_datamodule import AnswerDataModule
from lit_llada.data.folder import read_records
from lit_llada.errors import UserError
from lit_llada.evaluation.exact_match import Question, Reply
from lit_llada.modules.sft import SFTModule
from lit_llada.modules.vrpo import VRPOModule
from lit_llada.prepare.conversations import prepare_chat, prepare_preference
from lit_llada.text.tokenizer import Tokenizer

STEPS = 60


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What is easy has one answer; what is hard has answers that nothing tells."""
    root = tmp_path_factory.mktemp("questions")
    rows = [{"prompt": f"easy {n}", "answer": "a|b", "template": "easy"} for n in range(24)]
    rows += [{"prompt": f"hard {n}", "answer": str(n * n * 7919), "template": "hard"} for n in range(24)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(prepare_chat([str(root / "rows.jsonl")], str(root / "data"), val_fraction=0.3, workers=1))


def fit(toy: Any, data: str, callbacks: list[L.Callback], **options: Any) -> Any:
    torch.manual_seed(3)
    module = SFTModule(BackboneConfig(d_model=32, n_layers=2, n_heads=2, ff_dim=64), lr=1e-2)
    trainer = toy.trainer(callbacks, **{"max_steps": 4, **options})
    trainer.fit(module, datamodule=AnswerDataModule(data, length=64, batch_size=8))
    return module, trainer


def test_what_is_learnt_is_counted_and_shown(toy: Any, questions: str) -> None:
    asker = ExactMatch(every_n_steps=25, per_task=3, before=True)
    fit(toy, questions, [EMA(0.8), asker], max_steps=STEPS, logger=toy.board())
    assert asker.latest == {"easy": (3, 3), "hard": (0, 3)}
    events = toy.events()
    for name, last in (("", 0.5), ("/easy", 1.0), ("/hard", 0.0)):
        scalars = events.Scalars(f"val/exact_match{name}")
        assert [s.step for s in scalars] == [0, 25, 50, STEPS] and (scalars[0].value, scalars[-1].value) == (0, last)
    looks = tables(toy)
    assert [*looks] == [0, 25, 50, STEPS]
    assert looks[0][0] == ["task", "prompt", "wanted", "now (step 0)"]
    assert looks[STEPS][0] == ["task", "prompt", "wanted", "before (step 0)", f"now (step {STEPS})"]
    asked = [[q.task, q.prompt, q.answer] for q in asker.questions if q.task == "easy"][:2]
    for look in looks.values():  # two questions of each template, and the same ones each time
        assert [row[0] for row in look[1:]] == ["easy", "easy", "hard", "hard"]
        assert [row[:3] for row in look[1:3]] == asked
        assert [row[:3] for row in look] == [row[:3] for row in looks[0]]
    for first, row in zip(looks[0][1:], looks[STEPS][1:], strict=True):
        assert row[3] == first[3] and row[3].startswith("✗")
        assert row[4] == "✓ a|b" if row[0] == "easy" else row[4].startswith("✗")


def tables(toy: Any) -> dict[int, list[list[str]]]:
    """Step -> the cells of what TensorBoard shows, row by row."""
    shown = {
        text.step: markdown_to_safe_html(text.tensor_proto.string_val[0].decode())
        for text in toy.events().Tensors("exact_match/answers/text_summary")
    }
    return {
        step: [[html.unescape(c) for c in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)] for row in page.split("</tr>")[:-1]]
        for step, page in shown.items()
    }


def test_a_resumed_run_is_not_asked_about_the_weights_it_began_with(toy: Any, questions: str) -> None:
    _, trainer = fit(toy, questions, [ExactMatch(per_task=1)], max_steps=2)
    trainer.save_checkpoint(toy.folder / "two.ckpt")
    asker = ExactMatch(per_task=1, before=True)
    module = SFTModule(BackboneConfig(d_model=32, n_layers=2, n_heads=2, ff_dim=64), lr=1e-2)
    trainer = toy.trainer([asker], max_steps=3, logger=toy.board())
    trainer.fit(
        module, datamodule=AnswerDataModule(questions, length=64, batch_size=8), ckpt_path=toy.folder / "two.ckpt"
    )
    assert [s.step for s in toy.events().Scalars("val/exact_match")] == [3]
    assert tables(toy)[3][0] == ["task", "prompt", "wanted", "now (step 3)"]


def test_the_questions_are_validation_records_and_the_same_each_time(toy: Any, questions: str) -> None:
    first, second, other = (ExactMatch(per_task=3, seed=seed) for seed in (0, 0, 1))
    for asker in (first, second, other):
        fit(toy, questions, [asker], max_steps=1)
    known = {record.prompt for record in read_records(questions, "val")}
    assert {question.prompt for question in first.questions} < known
    assert first.questions == second.questions != other.questions
    assert first.latest == second.latest  # at the end, though never in between


def test_training_is_bit_equal_with_and_without_questions(toy: Any, questions: str) -> None:
    class Noise(L.Callback):
        """Something that draws from the global generator, as dropout would."""

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen.append(float(torch.rand(())))

    seen: list[float] = []
    plain, _ = fit(toy, questions, [Noise()])
    without, seen = seen, []
    asked, _ = fit(toy, questions, [Noise(), ExactMatch(every_n_steps=1, per_task=2, before=True)])
    assert seen == without and asked.net.training
    for a, b in zip(plain.net.parameters(), asked.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_averaged_weights_are_asked(toy: Any, questions: str) -> None:
    asker = ExactMatch(per_task=3)
    fit(toy, questions, [EMA(0.99999, warmup=False), asker], max_steps=STEPS)  # the average has hardly moved
    assert asker.latest["easy"] == (0, 3)


def two_ranks(rank: int, toy: Any, data: str, fsdp2: Callable[[], Any]) -> list[Any]:
    asker = ExactMatch(every_n_steps=40, per_task=3, block_length=4, before=True)
    module, _ = fit(
        toy, data, [EMA(0.5), asker], devices=2, strategy=fsdp2(), logger=toy.board(), max_steps=80,
    )  # fmt: skip
    try:
        fit(toy, data, [ExactMatch(count="threshold")], devices=2, strategy=fsdp2(), max_steps=1)
    except UserError as error:
        return [asker.latest, all(part.training for part in module.net.modules()), str(error)]
    raise AssertionError("not refused")


def test_two_ranks_that_share_a_net_answer_alike_and_one_writes(
    toy: Any, questions: str, fsdp2: Any, forked: Any
) -> None:
    (first, training, refusal), (second, _, _) = forked(two_ranks, 2, toy, questions, fsdp2)
    assert first == second and set(first) == {"easy", "hard"} and training
    assert first["easy"] == (3, 3)
    assert [s.step for s in toy.events().Scalars("val/exact_match")] == [0, 40, 80]
    assert "set exact_match.count to quota" in refusal


def test_an_answer_is_not_markup() -> None:
    asked = [
        Question([1], "c", 1, "a|*b*", "t_1"),
        Question([1], "c", 1, "p", "t_1"),
        Question([1], "c", 1, "q", "t_1"),
    ]
    said = [Reply("<b>d</b>\n", True), Reply("c", True), Reply("e", False)]
    shown = markdown_to_safe_html(replies_table(asked, said, 7))
    assert "<td>a|*b*</td>" in shown and "<td>✗ &lt;b&gt;d&lt;/b&gt;↵</td>" in shown and "<td>✓ c</td>" in shown
    assert shown.count("<tr>") == 3  # its head and two of the three
    assert "✗ e … \\(no end\\)" in replies_table(asked[2:], said[2:], 7)


def test_what_cannot_be_asked_is_refused_before_training(
    toy: Any, questions: str, prepared: Path, tmp_path: Path
) -> None:
    for options, line in (
        ({"per_task": 0}, "per_task is 0"),
        ({"new_tokens": 0}, "new_tokens is 0"),
        ({"count": "some"}, "count is 'some'"),
    ):
        with pytest.raises(UserError, match=line):
            ExactMatch(**options)  # type: ignore[arg-type]
    rows = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(20)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = str(prepare_preference([str(tmp_path / "p.jsonl")], str(tmp_path / "pairs"), workers=1))
    with pytest.raises(UserError, match="pairs holds preference, not questions with one right answer"):
        fit(toy, questions, [ExactMatch(data=pairs)])
    other = tmp_path / "other"
    Tokenizer.train_bpe(["some text to learn from"] * 3, 270).save(other)
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"prompt": f"{n}", "answer": "a"}) + "\n" for n in range(9)))
    chat = str(prepare_chat([str(tmp_path / "q.jsonl")], str(tmp_path / "chat"), tokenizer=str(other), workers=1))
    with pytest.raises(UserError, match="has another tokenizer than the run's data"):
        fit(toy, questions, [ExactMatch(data=chat)])
    with pytest.raises(UserError, match="gone"):
        fit(toy, questions, [ExactMatch(data="gone")])
    with pytest.raises(UserError, match="ExactMatch needs prepared data to ask about"):
        toy.fit([ExactMatch()])


def test_a_run_on_pairs_is_asked_about_another_folder(toy: Any, questions: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"easy {n}", "chosen": "a|b", "rejected": "b"} for n in range(40)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = str(prepare_preference([str(tmp_path / "p.jsonl")], str(tmp_path / "pairs"), workers=1))
    Tokenizer.byte().save(tmp_path)
    net = Backbone(BackboneConfig(vocab_size=258, d_model=32, n_layers=1, n_heads=2, ff_dim=64))
    net.init_weights(seed=1)
    write_run(net, 257, read_files(tmp_path), tmp_path / "start.ckpt")
    asker = ExactMatch(data=questions, per_task=2)
    trainer = toy.trainer([asker], max_steps=1)
    module = VRPOModule(init_from=str(tmp_path / "start.ckpt"))
    trainer.fit(module, datamodule=AnswerDataModule(pairs, length=64, batch_size=4, eos="one"))
    assert [asked for _, asked in asker.latest.values()] == [2, 2]
