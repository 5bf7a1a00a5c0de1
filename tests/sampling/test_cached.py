"""A cache may be wrong about what it does not look at, never about the rest: against the published runs and itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.load import load_net
from lit_llada.errors import UserError
from lit_llada.sampling.cached import (
    Cached,
    Scheme,
    agreement,
    compare,
    find_near,
    list_places,
    summarize,
)
from lit_llada.sampling.canvas import State, View, lay_out
from lit_llada.sampling.generate import generate
from lit_llada.sampling.guided import Guided
from lit_llada.sampling.plan import Plan
from lit_llada.text.specials import Specials

GOLDEN = Path(__file__).parents[1] / "golden"
RUNS = [
    run
    for run in json.loads((GOLDEN / "golden_sampling.json").read_text())["runs"]
    if run["reference"] in ("fast_prefix_cache", "fast_dual_cache")
]
SCHEMES: tuple[Scheme, ...] = ("prefix", "dual", "vicinity")
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "gqa": {"n_kv_heads": 2, "qk_norm": "width", "rope_fraction": 0.5},
    "moe": {"n_experts": 4, "expert_dim": 8, "qk_norm": "head", "rope_full_precision": False, "dense_layers": [0]},
}
SPECIALS = Specials(mask=11, eos=10)


def make_net(kind: str = "dense", seed: int = 0, dtype: torch.dtype = torch.float32) -> Backbone:
    """Of random weights that are large enough for every token to matter to every other."""
    shape = {"d_model": 16, "n_layers": 3, "n_heads": 4, "ff_dim": 24, "init": "normal", "init_std": 0.3}
    net = Backbone(BackboneConfig(vocab_size=12, **shape | KINDS[kind]), "eager")
    net.init_weights(seed)
    return net.to(dtype).eval()


def widths(net: Backbone) -> list[tuple[int, ...]]:
    """The shapes of the tokens that the net is given from now on."""
    seen: list[tuple[int, ...]] = []
    net.register_forward_pre_hook(lambda _module, inputs: seen.append(tuple(inputs[0].shape)))
    return seen


def last(states: Any) -> State:
    *_, state = states
    return state


def random_canvas(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (rows, 2), generator=generator).tolist()
    prompts = [torch.randint(0, 10, (size,), generator=generator).tolist() for size, _ in sizes]
    return lay_out(prompts, [new for _, new in sizes], SPECIALS)


# --- the published code ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_every_state_and_every_width_of_the_published_caches(run: dict[str, Any], dtype: torch.dtype) -> None:
    options, net = run["settings"], load_net(GOLDEN / run["model"], dtype)
    seen = widths(net)
    canvas = torch.nn.functional.pad(torch.tensor(run["prompt_ids"]), (0, options["gen_length"]), value=run["mask_id"])
    threshold, block = options["threshold"], options["block_length"]
    plan = Plan(steps=options["steps"], block_length=block, official=True)
    if threshold:
        plan = Plan(count="threshold", bound=threshold, block_length=block, official=True)
    cached = Cached(net, "prefix" if run["reference"] == "fast_prefix_cache" else "dual")
    states = list(generate(cached, canvas, Specials(run["mask_id"]), plan))
    expected = load_file(GOLDEN / "golden_sampling.safetensors")[f"{run['name']}.states"]
    assert torch.equal(torch.stack([s.canvas for s in states]), expected.long())
    assert states[-1].canvas.tolist() == run["final_ids"]
    assert states[-1].forwards.tolist() == [run["forward_passes"]]
    assert [width for _, width in seen] == run["input_width_per_forward"]
    assert cached.computed == sum(run["input_width_per_forward"])


def test_all_published_runs_are_covered() -> None:
    assert {r["name"] for r in RUNS} == {f"{a}_{b}" for a in "pd" for b in ("plain", "thr_0.5", "uneven")}


# --- what is exact ---


@pytest.mark.parametrize("plan", [Plan(block_length=3, count="threshold", bound=0.4), Plan(steps=9, temperature=1.0)])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_refresh_in_every_step_is_no_cache(kind: str, scheme: Scheme, plan: Plan) -> None:
    net, (canvas, real) = make_net(kind), random_canvas(4)
    plain = list(generate(net, canvas, SPECIALS, plan, real=real, details=True))
    cached = list(generate(Cached(net, scheme, refresh_every=1), canvas, SPECIALS, plan, real=real, details=True))
    assert len(plain) == len(cached) > 3
    for ours, theirs in zip(cached, plain, strict=True):
        for name in State._fields[1:]:  # probabilities and entropies too: the logits are the same to the last bit
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@torch.no_grad()
def test_a_cache_of_the_very_same_canvas_gives_the_logits_of_all(
    kind: str, scheme: Scheme, dtype: torch.dtype, atol: float
) -> None:
    net, (canvas, real) = make_net(kind, dtype=dtype), random_canvas(4)
    masked = real & (canvas == SPECIALS.mask)
    window = masked & (masked.cumsum(1) <= 3)
    positions = window.flatten().nonzero().squeeze(1)
    ids, yes = torch.tensor([0, 2, 3, 5]), torch.ones(4, dtype=torch.bool)
    view, cached = View(canvas, real, positions, ids, ~masked & real, window, yes), Cached(net, scheme, vicinity=2)
    seen = widths(net)
    whole = cached(view)
    part = cached(view._replace(fresh=~yes))
    fewer = slice(1, 3)  # two rows and one padded column less: the cache is found by ids, not by order
    few = View(*(x[fewer] for x in (canvas, real, canvas, ids, real, window, ~yes)))
    rest = cached(few._replace(positions=window[fewer].flatten().nonzero().squeeze(1)))
    assert seen[0] == tuple(canvas.shape) and seen[1][1] < canvas.shape[1]
    torch.testing.assert_close(part, whole, atol=atol, rtol=0)
    row = positions // canvas.shape[1]
    torch.testing.assert_close(rest, whole[(row == 1) | (row == 2)], atol=atol, rtol=0)
    changed = canvas.where(~window, 3)  # what is computed again is computed from the new tokens
    new = cached(view._replace(tokens=changed, fresh=~yes))
    assert (new - whole).abs().amax(1).min() > 1e-3


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(sorted(KINDS)),
    scheme=st.sampled_from(SCHEMES),
    refresh=st.sampled_from([None, 2, 3]),
    plan=st.sampled_from(
        [
            Plan(block_length=3),
            Plan(block_length=4, count="threshold", bound=0.5, official=True),
            Plan(block_length=2, aligned=True, temperature=1.0),
            Plan(block_length=4, count="threshold", bound=0.4, stop_at_eos=True),
            Plan(block_length=5, remask="remdm", order="random"),
        ]
    ),
)
def test_a_ragged_batch_gives_what_its_rows_give_alone(
    seed: int, kind: str, scheme: Scheme, refresh: int | None, plan: Plan
) -> None:
    net = make_net(kind, seed)
    canvas, real = random_canvas(4, seed)
    hole = torch.rand(canvas.shape, generator=torch.Generator().manual_seed(seed)) < 0.15  # given tokens between masks
    canvas = torch.where(real & hole, seed % 10, canvas)
    batch = last(generate(Cached(net, scheme, refresh, 1), canvas, SPECIALS, plan, real=real))
    for row in range(len(canvas)):
        alone, seeds = canvas[row : row + 1, : int(real[row].sum())], torch.tensor([row])
        state = last(generate(Cached(net, scheme, refresh, 1), alone, SPECIALS, plan, seeds=seeds))
        assert torch.equal(state.canvas[0], batch.canvas[row, real[row]])
        torch.testing.assert_close(state.confidence[0], batch.confidence[row, real[row]])
        assert state.forwards[0] == batch.forwards[row]


# --- what is computed again ---


def test_what_is_near_a_window() -> None:
    window = torch.tensor([[0, 0, 0, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0, 0]]).bool()
    real = torch.arange(8) < torch.tensor([[8], [5]])
    view = View(window.long(), real, window, window, window, window, window)

    def near(scheme: Scheme, reach: int) -> list[list[int]]:
        return [row.nonzero().squeeze(1).tolist() for row in find_near(view, scheme, reach)]

    assert near("prefix", 0) == [[3, 4, 5, 6, 7], [0, 1, 2, 3, 4]]
    assert near("dual", 0) == [[3, 4], [0, 2]]
    assert near("vicinity", 2) == [[1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4]]
    assert near("vicinity", 50) == [list(range(8)), list(range(5))]
    places = list_places(find_near(view, "dual", 0) | (torch.arange(8) == torch.tensor([[7], [2]])))
    assert places.tolist() == [[3, 4, 7], [0, 2, 2]]


def test_positions_and_refreshes_are_counted() -> None:
    net, canvas = make_net(), torch.full((1, 12), SPECIALS.mask)
    seen = widths(net)
    cached = Cached(net, "dual", refresh_every=3)
    last(generate(cached, canvas, SPECIALS, Plan(block_length=6)))
    assert [width for _, width in seen] == [12, 6, 6, 12, 6, 6] * 2
    assert cached.computed == 2 * (2 * 12 + 4 * 6)
    seen.clear()  # another run, of more and longer rows, in another dtype: nothing of the first is left
    net.double()
    last(generate(cached, torch.full((3, 20), SPECIALS.mask), SPECIALS, Plan(block_length=10)))
    assert seen[0] == (3, 20) and seen[1] == (3, 10)


def test_fresh_rows_and_others_are_asked_apart() -> None:
    net = make_net()
    seen, canvas = widths(net), torch.full((2, 8), SPECIALS.mask)
    canvas[:, 0] = canvas[1, 1] = 1
    last(generate(Cached(net, "dual"), canvas, SPECIALS, Plan(block_length=4, aligned=True)))
    # Row 0 has blocks of 3 and 4 masks, row 1 of 2 and 4: so row 1's second block begins a step before row 0's.
    assert seen == [(2, 8), (2, 3), (1, 8), (1, 3), (1, 8), (1, 4), (2, 4), (2, 4), (1, 4)]


# --- how wrong it is ---


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_meter_reads_zero_after_a_refresh_and_only_then(kind: str, scheme: Scheme) -> None:
    net, (canvas, real) = make_net(kind), random_canvas(5, 3)
    cached = Cached(net, scheme, refresh_every=2, vicinity=1, meter_every=1)
    states = list(generate(cached, canvas, SPECIALS, Plan(block_length=4), real=real))
    assert [r.step for r in cached.meter] == list(range(len(states) - 1))
    fresh = [r for r in cached.meter if r.age == 0]
    stale = [r for r in cached.meter if r.age == 1]
    assert fresh and stale and len(fresh) + len(stale) == len(cached.meter)
    assert all((r.max_error, r.kl, r.flips) == (0, 0, 0) for r in fresh)
    assert max(r.max_error for r in stale) > 1e-2 and max(r.kl for r in stale) > 0
    whole = summarize(cached.meter)
    assert whole is not None and whole.max_error == max(r.max_error for r in stale)
    assert whole.predictions == sum(r.predictions for r in cached.meter)


def test_the_meter_changes_nothing_and_is_read_every_nth_step() -> None:
    net, (canvas, real) = make_net(), random_canvas(3, 1)
    silent, metered = Cached(net, "prefix"), Cached(net, "prefix", meter_every=3)
    plan = Plan(block_length=4)
    ours, theirs = (list(generate(c, canvas, SPECIALS, plan, real=real)) for c in (metered, silent))
    assert all(torch.equal(a.probability, b.probability) for a, b in zip(ours, theirs, strict=True))
    assert [r.step for r in metered.meter] == list(range(0, len(ours) - 1, 3)) and not silent.meter
    assert metered.computed == silent.computed and summarize(silent.meter) is None


def test_a_reading_and_a_summary_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    one = compare(p.log().double(), q.log().double(), 4, 2)
    kl = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    assert one[:3] == (4, 2, 2) and one.flips == 0.5
    assert one.kl == pytest.approx(float(kl) / 2, rel=1e-6) and one.max_error == pytest.approx(0.6931472)
    two = compare(torch.zeros(6, 3), torch.zeros(6, 3), 5, 0)
    both = summarize([one, two])
    assert both == (5, 2, 8, one.max_error, pytest.approx(one.kl / 4), 0.125)


def test_agreement_counts_what_was_filled() -> None:
    ours, theirs = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]]), torch.tensor([[1, 2, 9, 4], [9, 2, 3, 4]])
    filled = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1]]).bool()
    assert agreement(ours, theirs, filled).tolist() == [0.5, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_runs(kind: str) -> None:
    net, (canvas, real) = make_net(kind, dtype=torch.bfloat16), random_canvas(3)
    final = last(generate(Cached(net, "vicinity", 2, 1), canvas, SPECIALS, Plan(block_length=4), real=real)).canvas
    assert not (final == SPECIALS.mask).any()


# --- what is refused ---


def test_what_a_cache_cannot_do_is_refused_by_name() -> None:
    net, canvas = make_net(), torch.full((1, 4), SPECIALS.mask)
    with pytest.raises(UserError, match="not Guided"):
        Cached(Guided(net, 1.0, SPECIALS.mask), "dual")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="guidance and a cache exclude each other"):
        list(generate(Guided(Cached(net, "dual"), 1.0, SPECIALS.mask), canvas, SPECIALS))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'both'; it is one of prefix, dual, vicinity"):
        Cached(net, "both")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="refresh_every must be at least 1"):
        Cached(net, "dual", refresh_every=0)
    with pytest.raises(UserError, match="causal"):
        Cached(Backbone(BackboneConfig(vocab_size=12, d_model=8, n_layers=1, n_heads=2, causal=True)), "dual")
    for plan in (Plan(remask="verify", count="threshold"), Plan(length="rho_eos", count="threshold")):
        with pytest.raises(UserError, match="cache goes neither"):
            list(generate(Cached(net, "dual"), canvas, SPECIALS, plan))
