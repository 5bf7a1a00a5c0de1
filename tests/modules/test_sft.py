"""The fine-tuning loss, proven: against the reference's numbers, and against full enumeration on a tiny vocabulary."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_llada.backbone import attention
from lit_llada.backbone.config import BackboneConfig
from lit_llada.checkpoint.load import load_net
from lit_llada.data.batch import AnswerBatch
from lit_llada.data.layout import Example, RowLayout, to_batch
from lit_llada.errors import UserError
from lit_llada.modules.predict import locate, predict
from lit_llada.modules.sft import SFTModule
from lit_llada.objectives import noise
from lit_llada.objectives.diffusion import answer_weights
from tests.backbone.attention_reference import use_stand_ins

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "golden_objective.json").read_text())["cases"]
TENSORS = load_file(GOLDEN / "golden_objective.safetensors")

V, MASK = 3, 3
PROMPT, ANSWER = 1, 3  # tokens: tiny enough to enumerate
ANSWERS = [(0, 1, 2), (2, 2, 1)]


@pytest.mark.parametrize(
    ("dtype", "key", "rtol"), [(torch.float32, "loss_f64", 2e-5), (torch.float64, "loss_f64_from_f64_model", 1e-9)]
)
def test_loss_through_the_model_equals_golden(dtype: torch.dtype, key: str, rtol: float) -> None:
    g = {name.removeprefix("sft_model."): value for name, value in TENSORS.items() if name.startswith("sft_model.")}
    tokens, length = g["input_ids"], g["input_ids"].shape[1]
    place = torch.arange(length) + g["prompt_lengths"][:, None]
    answers = torch.where(place < length, place + length * torch.arange(len(tokens))[:, None], -1)
    keys = torch.arange(len(tokens))
    batch = AnswerBatch(tokens, torch.zeros_like(tokens), answers, keys, keys)
    masked = (answers >= 0) & g["masked"].bool().flatten()[answers.clamp(min=0)]
    weight, count = answer_weights(g["p_mask"][:, 0], masked, batch.lengths, "sequence")
    (where,), net = locate(batch, masked[None]), load_net(GOLDEN / "dense_a", dtype)
    for known in (None, weight):
        found = predict(net, batch, where, CASES["sft_model"]["mask_id"], known)
        assert torch.equal(found.masked, g["masked"].bool())
        loss = (found.nll.double() * weight[found.sample]).sum() if found.loss is None else found.loss.double()
        torch.testing.assert_close((loss / count).item(), CASES["sft_model"][key], rtol=rtol, atol=0)


def test_a_batch_brings_the_layout_of_its_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made where the batch is made, on the CPU, so that no forward waits for a GPU to make it."""
    samples = [Example(np.arange(1, 1 + n), np.array([n - 1])) for n in (5, 8, 3)]
    batch = to_batch(samples, np.arange(3), np.arange(3), 0, RowLayout("packed", 9))
    net = load_net(GOLDEN / "dense_a", torch.float64)
    where = locate(batch, (batch.answers >= 0)[None])
    expected = predict(net, batch, *where, 0).nll
    net.attention = "varlen"
    use_stand_ins(monkeypatch)
    monkeypatch.setattr(attention, "flash_layout", None)
    torch.testing.assert_close(predict(net, batch, *where, 0).nll, expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(TypeError):
        predict(net, batch._replace(cu_seqlens=None), *where, 0)


class Table(nn.Module):
    """A random predictor that knows the whole noisy sequence."""

    def __init__(self) -> None:
        super().__init__()
        shape = (4 ** (PROMPT + ANSWER), PROMPT + ANSWER, V)
        self.logs = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).log_softmax(-1)

    def nll(self, noisy: Tensor, tokens: Tensor, positions: Tensor, mask: Any = None) -> tuple[Tensor, None]:
        state = (noisy * 4 ** torch.arange(noisy.shape[1])).sum(-1)
        return -self.logs[state].gather(-1, tokens.clamp(max=V - 1)[..., None]).flatten()[positions], None

    def weighted_nll(self, noisy: Tensor, tokens: Tensor, positions: Tensor, scale: Tensor, mask: Any = None) -> Any:
        nll, router = self.nll(noisy, tokens, positions, mask)
        return (scale * nll).sum(), nll, router


def sft(**options: Any) -> SFTModule:
    module = SFTModule(BackboneConfig(vocab_size=4), mask_id=MASK, **{"eps": 0.0, **options})
    module.net = Table()  # type: ignore[assignment]
    return module


def batch_of(*answers: tuple[int, ...]) -> AnswerBatch:
    tokens = torch.tensor([(1, *answer, *[0] * (ANSWER - len(answer))) for answer in answers])
    places = [[s * 4 + 1 + i if i < len(a) else -1 for i in range(ANSWER)] for s, a in enumerate(answers)]
    keys = torch.arange(len(answers))
    return AnswerBatch(tokens, torch.zeros_like(tokens), torch.tensor(places), keys, keys)


def exact_bound(answer: tuple[int, ...]) -> float:
    """Each masked set S of the answer weighs 1 / (|S| C(L, |S|))."""
    total, table, tokens = 0.0, Table(), torch.tensor([(1, *answer)])
    for size in range(1, ANSWER + 1):
        for chosen in itertools.combinations(range(PROMPT, PROMPT + ANSWER), size):
            positions = torch.tensor(chosen)
            nll, _ = table.nll(tokens.index_fill(1, positions, MASK), tokens, positions)
            total += float(nll.sum()) / (size * math.comb(ANSWER, size))
    return total


def expected_loss(module: SFTModule, answer: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> float:
    """The module's loss, averaged over all times (a quadrature that is exact here) and over all masks."""
    if module.masking == "bernoulli":
        nodes, weights = [0.5 - math.sqrt(0.15), 0.5, 0.5 + math.sqrt(0.15)], [5 / 18, 8 / 18, 5 / 18]
        patterns = [torch.tensor(bits) for bits in itertools.product([0.0, 1.0], repeat=ANSWER)]  # 0 is masked
    else:
        nodes, weights = [(i + 0.5) / ANSWER for i in range(ANSWER)], [1 / ANSWER] * ANSWER
        patterns = [torch.tensor(order) / ANSWER for order in itertools.permutations(range(ANSWER))]
    total = 0.0
    for t, weight in zip(nodes, weights, strict=True):
        for u in patterns:
            monkeypatch.setattr(noise, "keyed_uniform", lambda *_: u.double()[None])  # noqa: B023
            output = module._denoise(batch_of(answer), torch.tensor([t], dtype=torch.float64), 0)
            size = int((u == 0).sum())
            chance = t**size * (1 - t) ** (ANSWER - size) if module.masking == "bernoulli" else 1 / len(patterns)
            total += weight * chance * float(output["loss"] / output["count"])
    return total


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("masking", ["bernoulli", "fixed_count"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_expected_loss_is_the_exact_bound(
    answer: tuple[int, ...], masking: Any, complementary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for normalize in ("sequence", "token"):  # of one answer they are the same
        module = sft(masking=masking, complementary=complementary, normalize=normalize)
        found = expected_loss(module, answer, monkeypatch)
        assert found == pytest.approx(exact_bound(answer) / ANSWER, rel=1e-12)


def test_normalisations_weigh_short_and_long_answers_as_they_say() -> None:
    batch, t = batch_of((0, 1, 2), (2,)), torch.tensor([0.6, 0.3], dtype=torch.float64)
    for key in range(20):  # some draws leave an answer whole
        batch = batch._replace(keys=torch.tensor([key, key + 100]))
        outputs = {name: sft(normalize=name)._denoise(batch, t, 1) for name in ("sequence", "token", "uniform")}
        nll, p = outputs["token"]["nll"], outputs["token"]["p_mask"]
        length = torch.where(p == 0.6, 3.0, 1.0)
        sums = {"sequence": (nll / p / length).sum(), "token": (nll / p).sum(), "uniform": nll.sum()}
        counts = {"sequence": 2, "token": 4, "uniform": len(nll)}
        for name, output in outputs.items():
            torch.testing.assert_close(output["loss"], sums[name])
            assert int(output["count"]) == counts[name]


def test_what_only_fills_a_batch_up_counts_nowhere() -> None:
    t = torch.tensor([0.6, 0.3], dtype=torch.float64)
    alone, filled = batch_of((0, 1, 2)), batch_of((0, 1, 2), ())
    for normalize in ("sequence", "token", "uniform"):
        for options in ({}, {"masking": "fixed_count", "complementary": True, "eps": 1e-3}):
            module = sft(normalize=normalize, **options)
            one, two = module._denoise(alone, t[:1], 1), module._denoise(filled, t, 1)
            assert one["count"] == two["count"] and one["tokens"] == two["tokens"]
            torch.testing.assert_close(one["loss"], two["loss"])


def test_complementary_masks_cover_the_answer_once() -> None:
    output = sft(complementary=True)._denoise(batch_of(*ANSWERS), torch.tensor([0.4, 0.7]).double(), 1)
    first, second = output["masked"].chunk(2)
    assert not (first & second).any()
    assert torch.equal((first | second)[:, PROMPT:], torch.ones(2, ANSWER, dtype=torch.bool))
    assert not (first | second)[:, :PROMPT].any()
    module = sft(complementary=True).eval()  # validation asks once
    assert len(module._denoise(batch_of(*ANSWERS), torch.tensor([0.4, 0.7]).double(), 1)["masked"]) == 2


def test_band() -> None:
    from types import SimpleNamespace

    module = sft(band=[0.3, 0.5])
    module._trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1)  # type: ignore[assignment]
    module._start_sums()
    batch = batch_of(*ANSWERS * 50)
    t = module.training_step(batch, 0)["t"]
    assert 0.3 <= float(t.min()) < 0.32 and 0.48 < float(t.max()) < 0.5
    for wrong in ([0.5], [0.5, 0.5], [-0.1, 1.0], [0.0, 1.1]):
        with pytest.raises(UserError, match=r"model\.band"):
            sft(band=wrong)
