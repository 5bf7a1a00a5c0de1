"""Where the data are answers, so are samples: prompts are questions, asked in the template that is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_llada.backbone.config import BackboneConfig
from lit_llada.callbacks.samples import SampleLogger, text_of
from lit_llada.data.answer_datamodule import AnswerDataModule
from lit_llada.errors import UserError
from lit_llada.modules.sft import SFTModule
from lit_llada.prepare.conversations import prepare_chat, prepare_preference
from lit_llada.text.specials import Specials
from lit_llada.text.tokenizer import Tokenizer

HEADERS = ["<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
OPTIONS: dict[str, Any] = {"prompts": ["Q 3?", "Q 4?"], "free": 1, "infills": ["x[...]y"], "length": 48, "steps": 4}
ROWS = [{"prompt": f"Q {n}?", "answer": "ok", "chosen": "ok", "rejected": "no"} for n in range(24)]
FIELDS = {"chat": ("prompt", "answer"), "preference": ("prompt", "chosen", "rejected")}


def prepared(root: Path, template: str, kind: str = "chat") -> str:
    """A folder of bytes, or of a learnt vocabulary with the header tokens of LLaDA's template."""
    if template == "llada":
        tokenizer = Tokenizer.train_bpe(["user assistant Q 3? ok"] * 20, 270)
        tokenizer.model.add_special_tokens(HEADERS)
        tokenizer.save(root / "vocabulary")
    rows = [{field: row[field] for field in FIELDS[kind]} for row in ROWS]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make = {"chat": prepare_chat, "preference": prepare_preference}[kind]
    words = {"tokenizer": str(root / "vocabulary") if template == "llada" else "byte", "template": template}
    return str(make([str(root / "rows.jsonl")], str(root / "data"), val_fraction=0.3, workers=1, **words))


def fit(toy: Any, data: str, sampler: SampleLogger, **options: Any) -> AnswerDataModule:
    torch.manual_seed(3)
    module = SFTModule(BackboneConfig(d_model=32, n_layers=2, n_heads=2, ff_dim=64), lr=1e-2)
    answers = AnswerDataModule(data, length=48, batch_size=8)
    toy.trainer([sampler], **options).fit(module, datamodule=answers)
    return answers


@pytest.mark.parametrize("template", ["plain", "llada"])
@pytest.mark.parametrize("kind", FIELDS)
def test_a_prompt_is_what_is_trained_on_up_to_the_answer(tmp_path: Path, template: str, kind: str) -> None:
    data = AnswerDataModule(prepared(tmp_path, template, kind), length=64, batch_size=4)
    data.setup()
    asked = SampleLogger(**OPTIONS | {"prompts": [row["prompt"] for row in ROWS]}).canvases(
        data.tokenizer, data.chat_template
    )
    prompts = {tuple(ids) for name, ids in asked.items() if name.startswith("prompt")}
    rows, met = data.rows["train"][0], set()
    for ids, (start, _), *_ in (rows[i] for i in range(len(rows))):
        prompt = ids[:start].tolist()
        assert (*prompt, *[data.mask_id] * (48 - len(prompt))) in prompts
        met.add(tuple(prompt))
    assert len(met) == len(rows) > 8
    assert asked["free_1"] == [data.mask_id] * 48  # texts stay texts
    assert data.tokenizer.decode(asked["infill_1"], mask="") == "xy"


def test_what_is_learnt_is_answered_and_stands_beside_what_was_said_before(toy: Any, tmp_path: Path) -> None:
    sampler = SampleLogger(**OPTIONS, temperature=0.0, before=True)
    fit(toy, prepared(tmp_path, "llada"), sampler, max_steps=80, logger=toy.board())
    assert [sampler.latest[f"prompt_{i}"] for i in (1, 2)] == ["Q 3?\nok∎", "Q 4?\nok∎"]
    first, last = (t.tensor_proto.string_val[0].decode() for t in toy.events().Tensors("samples/texts/text_summary"))
    assert "| sample | text |" in first and "Q 3?↵ok" not in first
    assert "| sample | before | now |" in last
    [row] = [line for line in last.splitlines() if line.startswith("| prompt 1")]
    assert row.startswith("| prompt 1 | Q 3?↵") and row.endswith(" | Q 3?↵ok∎ |")
    steps = toy.events().Tensors("samples/prompt_1/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "<|start_header_id|>assistant<|end_header_id|>↵↵ok<|eot_id|>" in steps  # with all that the model sees


@pytest.mark.parametrize(("written", "shown"), [
    ([111, 107, 256, 111], "q?\nok∎"), ([111, 261, 256, 256], "q?\no∎"), ([0, 261, 107, 107], "q?\n\0∎"),
    ([261, 107, 256, 111], "q?\n∎"), ([111, 107, 107, 107], "q?\nokkk"),
])  # fmt: skip
def test_an_answer_is_shown_to_its_first_end(written: list[int], shown: str) -> None:
    asked = [65, 261]  # an end in the prompt does not count
    trace: Any = SimpleNamespace(start=[*asked, *[257] * 4], canvases=lambda: [[*asked, *written]])
    assert text_of(trace, Tokenizer.byte(), Specials(257, 256, 261), "q?") == shown


@pytest.mark.parametrize(("options", "line"), [
    ({"length": 16}, r"SampleLogger.length 16 leaves no room after the prompt 'Q 3\?', which has 22 tokens: make sa"),
    ({"prompts": ["a<|mask|>"]}, r"SampleLogger.prompts 'a<\|mask\|>': message 1 spells the special token <\|mask\|>"),
])  # fmt: skip
def test_what_cannot_be_asked_is_one_line_before_training(
    toy: Any, tmp_path: Path, options: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError, match=line) as error:
        fit(toy, prepared(tmp_path, "plain"), SampleLogger(**OPTIONS | options))
    assert "\n" not in str(error.value)
