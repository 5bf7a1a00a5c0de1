"""What the sampling benchmark measures with: the sorting task, and the published loop that it times against."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from lit_llada.checkpoint.load import load_net

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])  # the benchmarks are not installed


def test_a_row_is_numbers_separator_and_the_sorted_numbers() -> None:
    from benchmarks.sorting import ANSWER, EOS, SEPARATOR, draw_rows

    directions = set()
    for row, real, maskable in zip(*draw_rows(200, torch.Generator().manual_seed(3)), strict=True):
        prompt, answer = row[real & ~maskable].tolist(), row[maskable].tolist()
        numbers = prompt[:-1]
        assert prompt[-1] == SEPARATOR and 4 <= len(set(numbers)) == len(numbers) <= 10 and len(answer) == ANSWER
        said, rest = answer[: len(numbers)], answer[len(numbers) :]
        assert sorted(numbers) in (said, said[::-1]) and set(rest) == {EOS} and (row[~real] == EOS).all()
        directions.add(said == sorted(numbers))
    assert directions == {True, False}


def test_only_the_numbers_in_one_of_two_orders_and_then_eos_are_right() -> None:
    from benchmarks.sorting import ANSWER, EOS, draw_rows, solved

    tokens, _, maskable = draw_rows(100, torch.Generator().manual_seed(4))
    assert solved(tokens, maskable).all()
    answer = tokens[maskable].view(100, ANSWER)
    count = (answer < EOS).sum(1)

    def judged(changed: torch.Tensor) -> torch.Tensor:
        return solved(tokens.masked_scatter(maskable, changed), maskable)

    other_way = answer.clone()
    for row, n in zip(other_way, count, strict=True):
        row[:n] = row[:n].flip(0)
    assert judged(other_way).all()
    swapped, longer = answer.clone(), answer.clone()
    swapped[:, :2] = answer[:, :2].flip(1)
    longer[:, -1] = 0
    shorter = answer.scatter(1, count[:, None] - 1, EOS)
    assert not judged(swapped).any() and not judged(longer).any() and not judged(shorter).any()


@pytest.mark.parametrize("double", [False, True], ids=["today", "float64"])
def test_the_loop_that_is_timed_is_the_published_one(double: bool) -> None:
    from benchmarks.sampling import Watched, published_loop

    run = next(
        run for run in json.loads((GOLDEN / "golden_sampling.json").read_text())["runs"] if run["name"] == "g_full"
    )
    prompt, settings = torch.tensor(run["prompt_ids"]), run["settings"]
    canvas = F.pad(prompt, (0, settings["gen_length"]), value=run["mask_id"])
    net = Watched(load_net(GOLDEN / run["model"], torch.float32))
    states = torch.stack(list(published_loop(net, canvas, run["mask_id"], settings["block_length"], double=double)))
    assert torch.equal(states, load_file(GOLDEN / "golden_sampling.safetensors")["g_full.states"].long())
    assert net.computed == settings["steps"] * canvas.numel() and min(net.blocks, net.head) > 0


def test_the_same_loop_on_a_batch_that_is_padded_at_the_left() -> None:
    """Each row writes what it writes alone."""
    from benchmarks.sampling import Watched, pad_left, published_loop

    net, mask_id, new = Watched(load_net(GOLDEN / "dense_a", torch.float64)), 156, 8
    prompts = [[3, 14, 15, 92, 65], [27, 18], [28, 18, 28]]

    def run(chosen: list[list[int]]) -> torch.Tensor:
        canvas, real = pad_left(chosen, new, mask_id)
        assert (real is None) == (len({len(p) for p in chosen}) == 1)
        return torch.stack([c[:, -new:] for c in published_loop(net, canvas, mask_id, 4, real)])

    assert torch.equal(run(prompts), torch.cat([run([prompt]) for prompt in prompts], dim=1))
