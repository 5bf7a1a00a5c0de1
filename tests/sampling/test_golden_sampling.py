"""Every state of the published samplers: the uncached golden runs, in float32 and float64 (tests/golden/README.md)."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.load import load_net
from lit_llada.sampling import generate as engine
from lit_llada.sampling.blocks import quota
from lit_llada.sampling.canvas import State, lay_out
from lit_llada.sampling.generate import generate
from lit_llada.sampling.guided import Guided
from lit_llada.sampling.plan import Plan
from lit_llada.text.specials import Specials

GOLDEN = Path(__file__).parents[1] / "golden"
SAMPLING: dict[str, Any] = json.loads((GOLDEN / "golden_sampling.json").read_text())
RUNS = {run["name"]: run for run in SAMPLING["runs"]}
EQUAL_LENGTHS = [name for name in RUNS if name.startswith(("g_", "f_"))]
RAGGED = ["m_ragged", "m_ragged_cfg"]
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@functools.cache
def net(name: str, dtype: torch.dtype) -> Backbone:
    return load_net(GOLDEN / name, dtype)


@functools.cache
def tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "golden_sampling.safetensors")


def expected(run: dict[str, Any]) -> torch.Tensor:
    """``[forwards + 1, B, L]``"""
    return tensors()[f"{run['name']}.states"].long()


def denoiser(run: dict[str, Any], dtype: torch.dtype) -> Any:
    plain, scale = net(run["model"], dtype), run["settings"].get("cfg_scale")
    return Guided(plain, scale, run["mask_id"]) if scale else plain


def plan_of(settings: dict[str, Any]) -> Plan:
    eos = "never" if settings.get("logits_eos_inf") else "last" if settings.get("confidence_eos_eot_inf") else "free"
    rule = {"steps": settings["steps"]}
    if bound := settings.get("threshold"):
        rule = {"count": "threshold", "bound": bound}
    return Plan(block_length=settings["block_length"], eos=eos, official=True, **rule)


def canvases(states: list[State]) -> torch.Tensor:
    return torch.stack([state.canvas for state in states])


def test_no_golden_run_is_forgotten() -> None:
    cached = [name for name in RUNS if name.startswith(("p_", "d_"))]
    assert len(RUNS) == 27 and len(EQUAL_LENGTHS) == 18 and len(cached) == 6
    assert set(EQUAL_LENGTHS + RAGGED + cached) == RUNS.keys() - {"m_infill"}


@both_dtypes
@pytest.mark.parametrize("name", EQUAL_LENGTHS)
def test_every_state_of_the_published_sampler(name: str, dtype: torch.dtype) -> None:
    run = RUNS[name]
    length = run["settings"]["gen_length"]
    canvas = F.pad(torch.tensor(run["prompt_ids"]), (0, length), value=run["mask_id"])
    real = None
    if run["attention_mask"] is not None:
        real = F.pad(torch.tensor(run["attention_mask"]).bool(), (0, length), value=True)
    specials = Specials(run["mask_id"], run.get("eos_id"), run.get("eot_id"))
    states = list(generate(denoiser(run, dtype), canvas, specials, plan_of(run["settings"]), real=real))
    assert torch.equal(canvases(states), expected(run))
    assert states[-1].canvas.tolist() == run["final_ids"]
    assert states[-1].forwards.tolist() == [run["forward_passes"]] * len(canvas)
    assert [state.committed.sum(1).tolist() for state in states[1:]] == run["transfers_per_forward_per_row"]


@both_dtypes
@pytest.mark.parametrize("name", RAGGED)
def test_every_state_of_a_ragged_batch(name: str, dtype: torch.dtype) -> None:
    run = RUNS[name]
    specials = Specials(run["mask_id"])
    canvas, real = lay_out(run["prompt_ids"], run["settings"]["gen_length"], specials)
    assert real.sum(1).tolist() == [n + run["settings"]["gen_length"] for n in run["prompt_lengths"]]
    states = list(generate(denoiser(run, dtype), canvas, specials, plan_of(run["settings"]), real=real))
    assert torch.equal(canvases(states)[:, real], expected(run)[:, real])
    assert states[-1].forwards.tolist() == [run["forward_passes"]] * len(canvas)


@both_dtypes
def test_infilling_in_aligned_blocks(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """That sampler counts by another rule, and its rows wait for each other: ours take their counts, less the waits."""
    run = RUNS["m_infill"]
    counts = [[n for n in row if n] for row in zip(*run["transfers_per_forward_per_row"], strict=True)]

    def given_counts(masks: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        busy = [row for row in counts if row]
        assert len(busy) == len(masks)
        return torch.zeros_like(masks), torch.tensor([row.pop(0) for row in busy])

    specials = Specials(run["mask_id"])
    states = expected(run)
    real = torch.arange(states.shape[2]) < torch.tensor(run["prompt_lengths"])[:, None]
    monkeypatch.setattr(engine, "quota", given_counts)
    plan = Plan(block_length=run["settings"]["block_length"], aligned=True)
    found = canvases(list(generate(denoiser(run, dtype), states[0], specials, plan, real=real)))
    for row, kept in enumerate(real):
        assert torch.equal(*(x[:, row, kept].unique_consecutive(dim=0) for x in (found, states)))
    assert torch.equal(found[-1][real], torch.tensor(run["final_ids"])[real]) and not any(counts)


@pytest.mark.parametrize("case", SAMPLING["num_transfer_tokens"], ids=str)
def test_quota_is_the_published_one(case: dict[str, Any]) -> None:
    steps = torch.arange(case["steps"])
    before, now = quota(torch.full_like(steps, case["masked"]), torch.full_like(steps, case["steps"]), steps)
    assert now.tolist() == case["transfers"]
    assert before.tolist() == [sum(case["transfers"][:i]) for i in range(case["steps"])]
