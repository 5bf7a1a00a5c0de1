"""Samples reach TensorBoard, are the same for the same step, and leave no trace in the training."""

from __future__ import annotations

import re
from typing import Any

import lightning as L
import pytest
import torch
from tensorboard.plugin_util import markdown_to_safe_html

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.callbacks.ema import EMA
from lit_llada.callbacks.markdown import escape
from lit_llada.callbacks.samples import SampleLogger, texts_table
from lit_llada.errors import UserError
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.sampling.trace import Trace
from lit_llada.text.chat_template import ChatTemplate
from lit_llada.text.specials import Specials
from lit_llada.text.tokenizer import Tokenizer

OPTIONS: dict[str, Any] = {
    "every_n_steps": 2, "prompts": ["ab"], "free": 2, "infills": ["x[...]y[...]z"], "gap_length": 3, "length": 12,
    "steps": 5,
}  # fmt: skip


def test_texts_transcripts_and_pictures(toy: Any) -> None:
    sampler = SampleLogger(**OPTIONS)
    toy.fit([EMA(), sampler], logger=toy.board(), max_steps=5)
    events = toy.events()
    names = ["prompt_1", "free_1", "free_2", "infill_1"]
    assert set(sampler.latest) == set(names)
    assert sampler.latest["prompt_1"].startswith("ab") and "░" not in "".join(sampler.latest.values())
    texts = events.Tensors("samples/texts/text_summary")
    assert [t.step for t in texts] == [2, 4, 5]  # the last one is that of the end
    assert [i.step for i in events.Images("samples/free_1")] == [2, 4, 5]
    lines = events.Tensors("samples/infill_1/text_summary")[-1].tensor_proto.string_val[0].decode().splitlines()
    assert lines[1] == "   0 x░░░y░░░z" and len(lines) == 2 + 1 + 5  # two fences, the start, five steps
    assert lines[-2].startswith("   5 x") and "░" not in lines[-2]
    films = sorted(path.name for path in (toy.folder / "films").iterdir())
    assert films == ["step_000002.html", "step_000004.html", "step_000005.html"]
    assert b"films/step_000005.html" in texts[-1].tensor_proto.string_val[0]


def test_samples_from_before_the_first_step_stand_beside_the_later_ones(toy: Any) -> None:
    sampler = SampleLogger(**OPTIONS, before=True)
    _, trainer = toy.fit([EMA(), sampler], logger=toy.board(), max_steps=3)
    first, *later = [t.tensor_proto.string_val[0].decode() for t in toy.events().Tensors("samples/texts/text_summary")]
    assert [t.step for t in toy.events().Tensors("samples/texts/text_summary")] == [0, 2, 3]
    assert "| sample | text |" in first and "step_000000.html" in first
    began = {name: re.search(rf"\| {name.replace('_', ' ')} \| (.*) \|", first)[1] for name in sampler.latest}  # type: ignore[index]
    for text in later:
        assert "| sample | before | now |" in text
        for name, before in began.items():
            assert f"| {name.replace('_', ' ')} | {before} |" in text
    assert f"| {began['prompt_1']} | {escape(sampler.latest['prompt_1'])} |" in later[-1]
    trainer.save_checkpoint(toy.folder / "three.ckpt")
    resumed = SampleLogger(**OPTIONS, before=True)
    toy.fit([EMA(), resumed], ckpt=toy.folder / "three.ckpt", logger=toy.board(), max_steps=4)
    texts = toy.events().Tensors("samples/texts/text_summary")
    assert [t.step for t in texts] == [0, 2, 3, 4] and b"| sample | text |" in texts[-1].tensor_proto.string_val[0]


@pytest.mark.parametrize("chat", [False, True])
def test_ids_that_are_no_token_are_never_written(toy: Any, chat: bool) -> None:
    """The net's vocabulary is padded, as published ones are, and the net is surest of an id that no token has."""
    torch.manual_seed(3)
    padded = BackboneConfig(vocab_size=320, d_model=16, n_layers=1, n_heads=2, ff_dim=32, bias=True)
    module, data = PretrainingModule(padded, lr=0.0, random_length=0.0), toy.data()
    if chat:
        data.chat_template = ChatTemplate.named("plain", data.tokenizer)
    written: list[int] = []

    class Favour(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
            with torch.no_grad():
                pl_module.net.head.weight.zero_()
                pl_module.net.head.bias.zero_()[300] = 50.0

    class Looked(SampleLogger):
        def sample(self, *args: Any, **options: Any) -> dict[str, Trace]:
            traces = super().sample(*args, **options)
            written.extend(token for trace in traces.values() for token in trace.canvases()[-1])
            return traces

    toy.trainer([Favour(), Looked(**OPTIONS | {"length": 32})], max_steps=2).fit(module, data)
    assert written and max(written) < data.tokenizer.vocab_size == 258


def draw(**options: Any) -> dict[str, Trace]:
    net, tokenizer = Backbone(BackboneConfig(258, d_model=16, n_layers=1, n_heads=2, ff_dim=32)), Tokenizer.byte()
    net.init_weights(seed=1)
    sampler, specials = SampleLogger(**OPTIONS | options), Specials(tokenizer.mask_id, tokenizer.eos_id)
    return sampler.sample(net.eval(), sampler.canvases(tokenizer), specials, torch.device("cpu"), 7)


def test_a_sample_does_not_depend_on_the_others() -> None:
    few, many = draw(infills=[]), draw(infills=["x[...]" * 9])  # another width of the batch
    assert few["prompt_1"].canvases() == many["prompt_1"].canvases()
    # The free ones in random order: on a canvas of nothing but masks all places look alike, and rounding would choose.
    few, many = draw(infills=[], order="random"), draw(infills=["x[...]" * 9], order="random")
    for name in ("prompt_1", "free_1", "free_2"):
        assert few[name].canvases() == many[name].canvases()
    assert many["free_1"].canvases()[-1] != many["free_2"].canvases()[-1]
    assert len(many["infill_1"].start) == 9 * 4 and many["infill_1"].steps == 5
    assert draw(prompts=[], free=0, infills=[]) == {}


def test_a_sample_with_few_masks_takes_a_step_for_each() -> None:
    traces = draw(steps=64, block_length=4, free=1)
    assert {name: trace.steps for name, trace in traces.items()} == {"prompt_1": 10, "free_1": 12, "infill_1": 6}


def test_without_films(toy: Any) -> None:
    toy.fit([SampleLogger(**OPTIONS, film=False)], logger=toy.board(), max_steps=2)
    assert not (toy.folder / "films").exists()
    assert b"films" not in toy.events().Tensors("samples/texts/text_summary")[-1].tensor_proto.string_val[0]


def test_training_is_bit_equal_with_and_without_samples(toy: Any) -> None:
    class Noise(L.Callback):
        """Something that draws from the global generator, as dropout would."""

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen.append(float(torch.rand(())))

    seen: list[float] = []
    plain, _ = toy.fit([Noise()])
    without, seen = seen, []
    sampled, _ = toy.fit([Noise(), SampleLogger(**OPTIONS, before=True)])
    assert seen == without
    for a, b in zip(plain.net.parameters(), sampled.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_same_step_gives_the_same_samples(toy: Any) -> None:
    first, second, other = SampleLogger(**OPTIONS), SampleLogger(**OPTIONS), SampleLogger(**OPTIONS, seed=1)
    toy.fit([first])
    toy.fit([second])
    toy.fit([other])
    assert first.latest == second.latest != other.latest


def two_ranks(rank: int, toy: Any, fsdp2: Any) -> list[Any]:
    sampler = SampleLogger(**OPTIONS, before=True)
    module, _ = toy.fit([EMA(), sampler], devices=2, strategy=fsdp2(), logger=toy.board(), limit_val_batches=1)
    return [sampler.latest, all(part.training for part in module.net.modules())]


def test_two_ranks_sample_alike_and_one_writes(toy: Any, fsdp2: Any, forked: Any) -> None:
    (first, training), (second, _) = forked(two_ranks, 2, toy, fsdp2)
    assert first == second and len(first) == 4 and training
    assert [t.step for t in toy.events().Tensors("samples/texts/text_summary")] == [0, 2, 4]


def test_sampled_text_is_not_markup() -> None:
    shown = markdown_to_safe_html(texts_table({"free_1": "a|b *c* <b>d</b> `e` [f](g)\n# h_i_"}))
    assert shown.count("<td>") == 2 and "<td>a|b *c* &lt;b&gt;d&lt;/b&gt; `e` [f](g)↵# h_i_</td>" in shown


def test_what_cannot_be_sampled_is_refused_before_training(toy: Any) -> None:
    with pytest.raises(UserError, match="has no gap"):
        SampleLogger(infills=["no gap"])
    with pytest.raises(UserError, match=r"length 12 leaves no room after the prompt 'a{12}', which has 12 tokens: "):
        toy.fit([SampleLogger(prompts=["a" * 12], length=12)])
    with pytest.raises(UserError, match="steps 3 are too few for 4 blocks"):
        toy.fit([SampleLogger(length=16, steps=3, block_length=4, infills=[])])
    with pytest.raises(UserError, match="temperature is -1"):
        SampleLogger(temperature=-1)
    module = toy.module(mask_id=257)
    module.backbone.vocab_size = 258
    with pytest.raises(UserError, match="datamodule with a tokenizer"):
        toy.trainer([SampleLogger()]).fit(module, [toy.batch([0, 1])])
