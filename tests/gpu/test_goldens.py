"""What the public reference implementations computed (tests/golden), computed on each device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from lit_llada.backbone.attention import AttentionMask
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.load import load_net
from lit_llada.objectives.diffusion import bound_weights
from lit_llada.sampling.canvas import lay_out
from lit_llada.sampling.generate import generate
from lit_llada.sampling.guided import Guided
from lit_llada.sampling.plan import Plan
from lit_llada.text.specials import Specials
from tests.gpu.nets import distance

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = ["dense_a", "dense_gqa", "dense_tied", "moe_a", "moe_b"]
SAMPLING: dict[str, dict[str, Any]] = {
    run["name"]: run for run in json.loads((GOLDEN / "golden_sampling.json").read_text())["runs"]
}
UNCACHED = [name for name in SAMPLING if name.startswith(("g_", "f_", "m_ragged"))]
ON_A_CPU = ["g_semi", "g_moe", "g_batch2_leftpad_cfg", "f_thr_0.5", "m_ragged_cfg"]  # the others: tests/sampling
# bfloat16 keeps 8 bits, and these nets have large logits. A router that is rounded may choose another expert, which
# changes a token altogether.
BFLOAT16 = {"dense": 0.05, "moe": 0.3}


def golden_net(name: str, dtype: torch.dtype, device: torch.device) -> Backbone:
    net = load_net(GOLDEN / name, dtype).to(device)
    if json.loads((GOLDEN / name / "golden.json").read_text()).get("renormalised_topk"):
        for block in net.blocks:
            block.mlp.renormalize = True
    return net


def cases(name: str) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(GOLDEN / name / "golden.safetensors").items():
        case, what = key.split(".")
        found.setdefault(case, {})[what] = value
    return found


def logits_of(net: Backbone, case: dict[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits of the real tokens ``[N, V]``, on the CPU, and which are real."""
    tokens = case["input_ids"]
    real = case.get("attention_mask", torch.ones_like(tokens)).bool()
    mask = None if real.all() else AttentionMask(padding=real.to(device))
    return net(tokens.to(device), mask).cpu()[real], real


@pytest.mark.parametrize(("dtype", "kind", "atol"), [(torch.float32, "f32", 3e-4), (torch.float64, "f64", 1e-9)])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_equal_golden(device: torch.device, name: str, dtype: torch.dtype, kind: str, atol: float) -> None:
    net = golden_net(name, dtype, device)
    for case in cases(name).values():
        logits, real = logits_of(net, case, device)
        torch.testing.assert_close(logits, case[f"logits_{kind}"][real], atol=atol, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_bfloat16_is_near_float32(device: torch.device, name: str) -> None:
    net = golden_net(name, torch.bfloat16, device)
    for case in cases(name).values():
        logits, real = logits_of(net, case, device)
        assert distance(logits, case["logits_f32"][real]) <= BFLOAT16[name.split("_")[0]]


@pytest.mark.parametrize(
    ("dtype", "key", "rtol"), [(torch.float32, "loss_f64", 2e-5), (torch.float64, "loss_f64_from_f64_model", 1e-9)]
)
@torch.no_grad()
def test_loss_equals_golden(device: torch.device, dtype: torch.dtype, key: str, rtol: float) -> None:
    case = json.loads((GOLDEN / "golden_objective.json").read_text())["cases"]["pre_model"]
    tensors = load_file(GOLDEN / "golden_objective.safetensors")
    tokens, noisy, masked, p_mask = (
        tensors[f"pre_model.{name}"].to(device) for name in ("input_ids", "noisy_ids", "masked", "p_mask")
    )
    positions = masked.flatten().nonzero().squeeze(1)
    scale = bound_weights(positions, p_mask[:, 0].double(), tokens.shape[1])
    loss, _, _ = golden_net("dense_a", dtype, device).weighted_nll(noisy, tokens, positions, scale)
    torch.testing.assert_close(loss.item() / tokens.numel(), case[key], rtol=rtol, atol=0)


@pytest.mark.parametrize("name", UNCACHED)
def test_sampling_writes_the_golden_tokens(device: torch.device, name: str) -> None:
    if device.type == "cpu" and name not in ON_A_CPU:
        pytest.skip("in tests/sampling")
    run, settings = SAMPLING[name], SAMPLING[name]["settings"]
    specials = Specials(run["mask_id"], run.get("eos_id"), run.get("eot_id"))
    if name.startswith("m_"):
        canvas, real = lay_out(run["prompt_ids"], settings["gen_length"], specials)
    else:
        prompts = torch.tensor(run["prompt_ids"])
        seen = torch.ones_like(prompts) if run["attention_mask"] is None else torch.tensor(run["attention_mask"])
        canvas = F.pad(prompts, (0, settings["gen_length"]), value=run["mask_id"])
        real = F.pad(seen.bool(), (0, settings["gen_length"]), value=True)
    states = load_file(GOLDEN / "golden_sampling.safetensors")[f"{name}.states"].long()
    steps = generate(denoiser(run, device), canvas.to(device), specials, plan(settings), real=real.to(device))
    found = torch.stack([state.canvas.cpu() for state in steps])
    assert torch.equal(found[:, real], states[:, real])


def denoiser(run: dict[str, Any], device: torch.device) -> Any:
    net, scale = golden_net(run["model"], torch.float64, device), run["settings"].get("cfg_scale")
    return Guided(net, scale, run["mask_id"]) if scale else net


def plan(settings: dict[str, Any]) -> Plan:
    eos = "never" if settings.get("logits_eos_inf") else "last" if settings.get("confidence_eos_eot_inf") else "free"
    rule = {"count": "threshold", "bound": bound} if (bound := settings.get("threshold")) else {}
    steps = {} if rule else {"steps": settings["steps"]}
    return Plan(block_length=settings["block_length"], eos=eos, official=True, **rule, **steps)


@pytest.mark.parametrize("model", ["dense_gqa", "moe_b"])
def test_a_ragged_batch_writes_what_its_rows_write_alone(device: torch.device, model: str) -> None:
    net, specials = golden_net(model, torch.float64, device), Specials(mask=0)
    prompts, lengths = [[5, 6, 7], [9], [3, 8, 2, 4, 11, 6, 7]], [6, 9, 3]
    seeds = torch.tensor([4, 21, 38], device=device)
    how = Plan(block_length=3, temperature=0.7, count="threshold", bound=0.2)

    def written(rows: list[int]) -> list[list[int]]:
        canvas, real = lay_out([prompts[i] for i in rows], [lengths[i] for i in rows], specials)
        *_, last = generate(net, canvas.to(device), specials, how, real=real.to(device), seeds=seeds[rows])
        return [row[kept].tolist() for row, kept in zip(last.canvas.cpu(), last.real.cpu(), strict=True)]

    together = written([0, 1, 2])
    assert together == [written([i])[0] for i in range(3)]
    assert [len(row) for row in together] == [9, 10, 10]
