"""The sampler against the published one (golden runs) and against full enumeration on a lookup-table denoiser."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lit_llada.errors import UserError
from lit_llada.sampling.generate import Order, State, generate, quota

GOLDEN = Path(__file__).parents[1] / "golden"
SAMPLING: dict[str, Any] = json.loads((GOLDEN / "golden_sampling.json").read_text())
PLAIN = [
    run
    for run in SAMPLING["runs"]
    if run["reference"] == "llada_generate"
    and not run["settings"]["cfg_scale"]
    and not run["settings"].get("confidence_eos_eot_inf")
    and run["attention_mask"] is None
]
MASK, VOCABULARY = 3, 4


class Table:
    """A denoiser with a fixed random distribution for every canvas; counts the rows that meet the vocabulary."""

    def __init__(self, mask_logit: float = 0.0) -> None:
        self.calls: list[int] = []
        self.mask_logit = mask_logit

    def logits(self, row: tuple[int, ...]) -> Tensor:
        """[L, V]"""
        seed = int("".join(map(str, row)), VOCABULARY) + 1
        logits = torch.randn(len(row), VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 1.5
        logits[:, MASK] = self.mask_logit
        return logits

    def __call__(self, tokens: Tensor, *, rows: Tensor) -> Tensor:
        self.calls.append(len(rows))
        known = {row: self.logits(row) for row in {tuple(r) for r in tokens.tolist()}}
        return torch.cat([known[tuple(r)] for r in tokens.tolist()])[rows]


def last(states: Any) -> State:
    *_, state = states
    return state


def test_golden_runs_are_covered() -> None:
    assert {run["name"] for run in PLAIN} >= {"g_full", "g_half", "g_semi", "g_uneven", "g_batch2", "g_moe"}


@pytest.mark.parametrize("run", PLAIN, ids=lambda run: run["name"])
def test_every_state_of_the_published_sampler(run: dict[str, Any]) -> None:
    from lit_llada.checkpoint.keymaps import read_folder

    net, settings = read_folder(GOLDEN / run["model"]), run["settings"]
    prompt = torch.tensor(run["prompt_ids"])
    canvas = torch.nn.functional.pad(prompt, (0, settings["gen_length"]), value=run["mask_id"])
    forbidden = [run["eos_id"]] if settings.get("logits_eos_inf") else []
    states = list(
        generate(
            net,
            canvas,
            run["mask_id"],
            settings["steps"],
            block_length=settings["block_length"],
            forbidden=forbidden,
        )
    )
    expected = load_file(GOLDEN / "golden_sampling.safetensors")[f"{run['name']}.states"]
    assert torch.equal(torch.stack([s.canvas for s in states]), expected.long())
    assert states[-1].canvas.tolist() == run["final_ids"] and not states[-1].confidence.requires_grad
    assert [s.committed.sum(1).tolist() for s in states[1:]] == run["transfers_per_forward_per_row"]


@pytest.mark.parametrize("case", SAMPLING["num_transfer_tokens"], ids=str)
def test_quota_is_the_published_one(case: dict[str, Any]) -> None:
    assert quota(torch.tensor([case["masked"]]), case["steps"]).tolist() == [case["transfers"]]


def exact(table: Table, start: tuple[int, ...], order: Order) -> dict[tuple[int, ...], float]:
    """The distribution over final rows, one token at a time, by enumerating every path."""
    holes = [i for i, token in enumerate(start) if token == MASK]
    if not holes:
        return {start: 1.0}
    total: dict[tuple[int, ...], float] = {}
    logits = table.logits(start)
    q = logits[:, :MASK].softmax(-1)  # what a token is drawn from: everything but the mask
    confidence = logits.softmax(-1)
    for tokens in itertools.product(range(MASK), repeat=len(holes)):  # one joint draw of all candidates
        p = 1.0
        for i, token in zip(holes, tokens, strict=True):
            p *= float(q[i, token])
        best = max(range(len(holes)), key=lambda n: float(confidence[holes[n], tokens[n]]))
        for n in range(len(holes)) if order == "random" else [best]:
            share = p / len(holes) if order == "random" else p
            row = start[: holes[n]] + (tokens[n],) + start[holes[n] + 1 :]
            for final, weight in exact(table, row, order).items():
                total[final] = total.get(final, 0.0) + share * weight
    return total


@pytest.mark.parametrize("order", ["random", "low_confidence"])
@pytest.mark.parametrize("start", [(MASK, MASK, MASK), (MASK, 1, MASK, MASK)], ids=["free", "infill"])
def test_samples_follow_the_exact_distribution(order: Order, start: tuple[int, ...]) -> None:
    table, draws = Table(), 6000
    generator = torch.Generator().manual_seed(5)
    canvas = torch.tensor([start]).expand(draws, -1)
    final = last(generate(table, canvas, MASK, 3, order=order, temperature=1.0, generator=generator)).canvas
    counts: dict[tuple[int, ...], int] = {}
    for row in final.tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    law = exact(table, start, order)
    assert set(counts) <= set(law) and sum(law.values()) == pytest.approx(1.0)
    expected = torch.tensor([draws * p for p in law.values()])
    seen = torch.tensor([float(counts.get(row, 0)) for row in law])
    big = expected >= 5
    chi = float(((seen - expected) ** 2 / expected)[big].sum())
    freedom = int(big.sum())
    assert chi < freedom + 4 * (2 * freedom) ** 0.5, (chi, freedom)


def test_infilling_keeps_what_is_given_and_only_open_rows_meet_the_vocabulary() -> None:
    table = Table()
    canvas = torch.tensor([[0, MASK, 1, MASK, MASK], [2, 2, MASK, 0, 1]])
    states = list(generate(table, canvas, MASK, 3, block_length=2))
    assert table.calls == [3, 1, 1]  # row 0 has blocks of 2 and 1 masks, row 1 has one mask
    for state in states:
        assert torch.equal(state.canvas[canvas != MASK], canvas[canvas != MASK])
        assert torch.equal(state.confidence == 0, state.canvas == MASK)
    assert not (states[-1].canvas == MASK).any()
    assert torch.equal(sum(s.committed.int() for s in states), (canvas == MASK).int())
    assert states[0].canvas is canvas


def test_the_mask_is_never_produced_and_forbidden_ids_neither() -> None:
    canvas = torch.full((50, 4), MASK)
    generator = torch.Generator().manual_seed(0)
    final = last(
        generate(Table(mask_logit=50.0), canvas, MASK, 2, temperature=1.0, forbidden=[1], generator=generator)
    ).canvas
    assert set(final.unique().tolist()) == {0, 2}


def test_a_generator_decides_everything_and_the_global_one_is_left_alone() -> None:
    before = torch.get_rng_state()
    canvas = torch.full((2, 6), MASK)
    runs = [
        last(
            generate(
                Table(), canvas, MASK, 6, order="random", temperature=1.0, generator=torch.Generator().manual_seed(1)
            )
        ).canvas
        for _ in range(2)
    ]
    assert torch.equal(*runs) and torch.equal(before, torch.get_rng_state())


def test_a_full_canvas_and_wrong_options() -> None:
    full = torch.zeros(1, 4, dtype=torch.int64)
    table = Table()
    assert torch.equal(last(generate(table, full, MASK, 2)).canvas, full) and table.calls == []
    with pytest.raises(UserError, match="too few for 2 blocks"):
        list(generate(table, torch.full((1, 4), MASK), MASK, 1, block_length=2))
    with pytest.raises(UserError, match="temperature -1"):
        list(generate(table, full, MASK, 1, temperature=-1.0))
