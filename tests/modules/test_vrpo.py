"""The gradient of VRPO is that of its definition, in flat memory, and the trainer takes all of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_llada.backbone.attention import AttentionMask
from lit_llada.backbone.moe import balance_loss, z_loss
from lit_llada.data.batch import AnswerBatch
from lit_llada.modules import vrpo
from lit_llada.modules.vrpo import VRPOModule
from lit_llada.objectives.preference import ESTIMATORS, Estimator
from tests.modules.conftest import Curve, data_of, module_of, trainer_of

CPU = SimpleNamespace(root_device=torch.device("cpu"))
ESTIMATED = {
    "vrpo": Estimator(4),
    "naive": ESTIMATORS["naive"],
    "all": Estimator(5, full_mask=True, stratified=True, complementary=True, coupled=True),
    "bernoulli": Estimator(2, 2, masking="bernoulli", shared=False),
}


def batch_of(folder: Path, size: int = 4, **options: Any) -> AnswerBatch:
    data = data_of(folder, batch_size=size, **options)
    data.setup()
    return next(iter(data.training_loader()))


def built(start: Path, accumulate: int = 1, moved: float = 0.0, **options: Any) -> VRPOModule:
    """A module in float64 in the middle of a run, its policy a little away from its reference."""
    module = VRPOModule(init_from=str(start), **options)
    trainer = SimpleNamespace(
        accumulate_grad_batches=accumulate,
        world_size=1,
        ckpt_path=None,
        predicting=False,
        datamodule=None,
        strategy=CPU,
    )
    module._trainer = trainer  # type: ignore[assignment]
    module.setup("fit")
    module.configure_model()
    module.double()
    for twin in module._twin:
        twin.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in filter(lambda p: p.requires_grad, module.parameters()):
            p += moved * torch.randn(p.shape, dtype=p.dtype, generator=generator)
    module._start_sums()
    return module


def gradient(module: VRPOModule) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def definition(module: VRPOModule, batch: AnswerBatch, reference: bool = False) -> tuple[Tensor, Tensor]:
    """``[2P]`` ELBOs from whole logits, one graph, and the sum of a sparse net's router losses over the draws."""
    net = module._twin[0] if reference else module.trained
    masks, routers = (
        module.draw(batch, "train", role="reference" if reference else "policy"),
        torch.zeros((), dtype=torch.float64),
    )
    elbo = torch.zeros(len(batch.keys), dtype=torch.float64)
    for masked, weight in zip(*masks, strict=True):
        for s, place in enumerate(batch.answers):
            positions = place[masked[s]]
            assert len(positions), "each draw masks something"
        positions = batch.answers[masked]
        noisy = batch.tokens.flatten().index_fill(0, positions, module.mask_token).view_as(batch.tokens)
        logs = net(noisy, AttentionMask(batch.documents)).log_softmax(-1)
        right = logs.gather(-1, batch.tokens[..., None]).flatten()
        elbo = elbo + torch.stack(
            [w * right[a[m]].sum() for w, a, m in zip(weight, batch.answers, masked, strict=True)]
        )
        if module.backbone.n_experts:
            _, router = net.nll(noisy, batch.tokens, positions, AttentionMask(batch.documents))
            k = module.backbone.experts_per_token
            routers = routers + module.balance_weight * balance_loss(router, k) + module.z_weight * z_loss(router)
    return elbo, routers


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("kind", ["dpo", "ipo"])
@pytest.mark.parametrize("net", ["dense", "moe"])
def test_gradient_is_that_of_the_definition(
    pairs: Path, starts: dict[str, Path], net: str, kind: Any, layout: Any
) -> None:
    module = built(starts[net], moved=0.05, estimator=ESTIMATED["vrpo"], kind=kind)
    batch = batch_of(pairs, layout=layout)
    output = module.training_step(batch, 0)
    output["loss"].backward()
    found = gradient(module)

    module.zero_grad()
    elbo, routers = definition(module, batch)
    with torch.no_grad():
        tied, _ = definition(module, batch, reference=True)
    chosen, rejected = (elbo - tied).chunk(2)
    margin = chosen - rejected
    loss = -(0.2 * margin).sigmoid().log() if kind == "dpo" else (margin - 1 / 0.4) ** 2
    loss = (loss - 0.05 * elbo[:4] / batch.lengths[:4]).sum()
    assert float(margin.abs().min()) > 0.01
    torch.testing.assert_close(module._step.sums["loss"], loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(module._step.sums["score"], 0.2 * margin.sum().detach(), rtol=1e-10, atol=1e-10)
    (loss + output["count"] * routers / 4).backward()
    for mine, exact in zip(found, gradient(module), strict=True):
        torch.testing.assert_close(mine, exact, rtol=0, atol=1e-10)


def one_pass(
    log_likelihood: Callable[[int], tuple[Tensor, Any]],
    draws: int,
    loss: Callable[[Tensor], Tensor],
    scale: float,
    weighted: Any,
) -> tuple[Tensor, Tensor]:
    """All draws in one graph."""
    sums, extras = zip(*(log_likelihood(draw) for draw in range(draws)), strict=True)
    whole = torch.stack(sums)
    return loss(whole) + sum(extra for extra in extras if extra is not None), whole.detach()


@pytest.mark.parametrize("estimator", ESTIMATED.values(), ids=ESTIMATED)
@pytest.mark.parametrize("net", ["dense", "moe"])
def test_two_passes_equal_one_over_accumulated_batches(
    pairs: Path, starts: dict[str, Path], net: str, estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = built(starts[net], accumulate=2, moved=0.05, estimator=estimator)
    batches = [batch_of(pairs), batch_of(pairs, seed=2)]
    grads, sums = [], []
    for trick in (vrpo.two_pass, one_pass):
        monkeypatch.setattr(vrpo, "two_pass", trick)
        module._start_sums()  # an optimizer step has been made: the old gradient is dropped by the next one
        for i, batch in enumerate(batches):
            (module.training_step(batch, i)["loss"] / 2).backward()
        grads.append(gradient(module))
        sums.append(module._step.sums)
    for mine, exact in zip(*grads, strict=True):
        torch.testing.assert_close(mine, exact, rtol=0, atol=1e-10)
    assert sums[0].keys() == sums[1].keys()
    for name, value in sums[0].items():
        torch.testing.assert_close(value, sums[1][name], rtol=1e-12, atol=1e-12)


def test_two_passes_under_autocast(pairs: Path, starts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast keeps the weights' bfloat16 copies: those of a pass without a graph must not serve one with it."""
    module, batch, grads = built(starts["moe"], moved=0.05, estimator=Estimator(4)).float(), batch_of(pairs), []
    module._twin[0].float()
    for trick in (vrpo.two_pass, one_pass):
        monkeypatch.setattr(vrpo, "two_pass", trick)
        module._start_sums()
        with torch.autocast("cpu", torch.bfloat16):
            output = module.training_step(batch, 0)
        output["loss"].backward()
        grads.append({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, exact in grads[1].items():
        assert float((grads[0][name] - exact).norm()) < 0.05 * float(exact.norm()), name


def peak(module: VRPOModule, batch: AnswerBatch) -> int:
    """Bytes that are kept for the backward pass at once, at most."""
    held, most = 0, 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal held, most
            self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
            held += self.bytes
            most = max(most, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.bytes

    module._start_sums()
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        module.training_step(batch, 0)["loss"].backward()
    return most


def test_memory_does_not_grow_with_the_draws(
    pairs: Path, starts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(pairs)
    peaks = {n: peak(built(starts["dense"], estimator=Estimator(n)), batch) for n in (1, 4, 16)}
    assert max(peaks.values()) < 1.15 * peaks[1], peaks  # how many tokens a draw masks is random
    monkeypatch.setattr(vrpo, "two_pass", one_pass)
    assert peak(built(starts["dense"], estimator=Estimator(16)), batch) > 10 * peaks[1]


@pytest.mark.parametrize("net", ["dense", "moe"])
def test_scores_are_exactly_zero_at_the_start_if_noise_is_shared(
    pairs: Path, starts: dict[str, Path], net: str
) -> None:
    batch = batch_of(pairs)
    module = built(starts[net], estimator=Estimator(4))
    module.training_step(batch, 0)
    assert float(module._step.sums["score"]) == float(module._step.sums["score_variance"]) == 0
    apart = built(starts[net], estimator=Estimator(4, shared=False))
    apart.training_step(batch, 0)
    assert abs(float(apart._step.sums["score"])) > 1e-3


def test_pairs_that_only_fill_a_batch_up_count_nowhere(pairs: Path, starts: dict[str, Path]) -> None:
    batch = batch_of(pairs, 3)
    module = built(starts["dense"], moved=0.05, estimator=ESTIMATED["all"])

    def sums(*empty: int) -> dict[str, Tensor]:
        answers = batch.answers.clone()
        for pair in empty:
            answers[[pair, pair + 3]] = -1
        module.on_validation_epoch_start()
        output = module.validation_step(batch._replace(answers=answers), 0)
        assert int(output["count"]) == 3 - len(empty)
        return module._validation["means"].metric_state

    whole, first, others = sums(), sums(1, 2), sums(0)
    for name, value in whole.items():
        torch.testing.assert_close(first[name] + others[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("net", ["dense", "moe"])
def test_the_trainer_takes_the_whole_gradient(
    tmp_path: Path, pairs: Path, starts: dict[str, Path], net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of it is made inside training_step, where Lightning would not expect it."""
    curve = Curve()
    trainer = trainer_of(tmp_path, curve, max_steps=1, accumulate_grad_batches=2)
    trainer.fit(module_of(starts[net]), datamodule=data_of(pairs))
    monkeypatch.setattr(vrpo, "two_pass", one_pass)
    monkeypatch.setattr(VRPOModule, "zero_grad", lambda *_, **__: None)  # there is nothing yet
    module = built(starts[net], accumulate=2, estimator=Estimator(3))
    data = data_of(pairs)
    data.setup()
    for i, batch in zip(range(2), data.training_loader(), strict=False):
        module.training_step(batch, i)["loss"].backward()
    norm = torch.stack([g.square().sum() for g in gradient(module)]).sum().sqrt() / module._step.sums["count"]
    assert curve.values[-1]["train/grad_norm"] == pytest.approx(float(norm), rel=1e-5)
