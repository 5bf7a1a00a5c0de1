"""The bound, proven: against the reference's numbers, and against full enumeration on a tiny vocabulary."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_llada.checkpoint.load import load_net
from lit_llada.objectives.diffusion import answer_weights, bound_weights
from lit_llada.objectives.noise import mask_tokens

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "golden_objective.json").read_text())["cases"]
TENSORS = load_file(GOLDEN / "golden_objective.safetensors")

V, L, MASK = 3, 4, 3  # tiny enough to enumerate: three tokens, four positions
DRAWS = 16_384  # enough to meet the rarest mask


def golden(case: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(case + "."): value for key, value in TENSORS.items() if key.startswith(case + ".")}


@pytest.mark.parametrize(("kind", "rtol"), [("loss_f32", 2e-6), ("loss_f64", 1e-9)])
@pytest.mark.parametrize("case", ["pre_given", "pre_model", "pre_empty_row"])
def test_pretraining_loss_equals_golden(case: str, kind: str, rtol: float) -> None:
    g = golden(case)
    dtype = torch.float32 if kind == "loss_f32" else torch.float64
    positions = g["masked"].flatten().nonzero().squeeze(1)
    logits, targets = g["logits"].to(dtype).flatten(0, 1)[positions], g["input_ids"].flatten()[positions]
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    scale = bound_weights(positions, g["p_mask"][:, 0].to(dtype), g["input_ids"].shape[1])
    loss = (scale * nll).sum() / g["input_ids"].numel()
    torch.testing.assert_close(loss.double().item(), CASES[case][kind], rtol=rtol, atol=0)


@pytest.mark.parametrize(("dtype", "key", "rtol"), [
    (torch.float32, "loss_f64", 2e-5), (torch.float64, "loss_f64_from_f64_model", 1e-9),
])  # fmt: skip
def test_pretraining_loss_through_the_model_equals_golden(dtype: torch.dtype, key: str, rtol: float) -> None:
    g = golden("pre_model")
    positions = g["masked"].flatten().nonzero().squeeze(1)
    scale = bound_weights(positions, g["p_mask"][:, 0].double(), g["input_ids"].shape[1])
    total, _, _ = load_net(GOLDEN / "dense_a", dtype).weighted_nll(g["noisy_ids"], g["input_ids"], positions, scale)
    loss = total / g["input_ids"].numel()
    torch.testing.assert_close(loss.double().item(), CASES["pre_model"][key], rtol=rtol, atol=0)


@pytest.mark.parametrize(("kind", "rtol"), [("loss_f32", 2e-6), ("loss_f64", 1e-9)])
@pytest.mark.parametrize("case", ["sft_given", "sft_model"])
def test_fine_tuning_loss_equals_golden(case: str, kind: str, rtol: float) -> None:
    g = golden(case)
    dtype = torch.float32 if kind == "loss_f32" else torch.float64
    masked = g["masked"].bool()
    nll = torch.nn.functional.cross_entropy(g["logits"].to(dtype)[masked], g["input_ids"][masked], reduction="none")
    lengths = g["input_ids"].shape[1] - g["prompt_lengths"]
    weight, count = answer_weights(g["p_mask"][:, 0], masked, lengths, "sequence")
    loss = (nll * weight.to(dtype)[masked.nonzero()[:, 0]]).sum() / count
    torch.testing.assert_close(loss.double().item(), CASES[case][kind], rtol=rtol, atol=0)


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    """A random predictor: log-probabilities ``[4^L states, L, V]`` of every position in every noisy sequence."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4**L, L, V, dtype=torch.float64, generator=generator).log_softmax(-1)


def nll_of(table: torch.Tensor, noisy: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    state = (noisy * 4 ** torch.arange(L)).sum(-1)
    log_p = table[state].gather(-1, tokens[..., None]).squeeze(-1)
    return -log_p.flatten()[positions]


def exact_bound(table: torch.Tensor, tokens: torch.Tensor) -> float:
    """-E over orders of sum log p(next | revealed): each masked set S weighs 1 / (|S| C(L, |S|)) (Equation 15)."""
    total = 0.0
    for bits in itertools.product([False, True], repeat=L):
        masked = torch.tensor([bits])
        if not masked.any():
            continue
        positions = masked.flatten().nonzero().squeeze(1)
        nll = nll_of(table, torch.where(masked, MASK, tokens[None]), tokens[None], positions).sum()
        size = int(masked.sum())
        total += float(nll) / (size * math.comb(L, size))
    return total


def exact_nll(table: torch.Tensor, tokens: torch.Tensor) -> float:
    """-log of the probability that revealing one uniformly chosen position after the other yields ``tokens``."""
    p = {frozenset(range(L)): 1.0}
    for size in range(L, 0, -1):
        for masked in map(frozenset, itertools.combinations(range(L), size)):
            noisy = torch.tensor([MASK if i in masked else int(tokens[i]) for i in range(L)])
            for i in masked:
                step = math.exp(-float(nll_of(table, noisy[None], tokens[None], torch.tensor([i]))))
                p[masked - {i}] = p.get(masked - {i}, 0.0) + p[masked] * step / size
    return -math.log(p[frozenset()])


def expected_loss(table: torch.Tensor, tokens: torch.Tensor, masking: str, eps: float = 0.0) -> float:
    """The loss of our code, averaged over all times (a quadrature that is exact here) and over all masks.

    The times fall on nodes, the masks of one time are enumerated with their probabilities: the code itself draws,
    for as many keys as it takes until it has shown every mask of that time.
    """
    if masking == "bernoulli":
        nodes, weights = gauss_legendre((L + 1) // 2)  # the integrand is a polynomial of degree L - 1
    else:
        nodes, weights = (torch.arange(L) + 0.5) / L, torch.full((L,), 1 / L, dtype=torch.float64)
    keys = torch.arange(DRAWS)
    total = 0.0
    for t, weight in zip(nodes, weights, strict=True):
        rows_of = mask_tokens(
            tokens.expand(DRAWS, L), torch.ones(DRAWS, L, dtype=torch.bool), t.double().expand(DRAWS), keys, MASK, 1,
            masking=masking, eps=eps,
        )  # fmt: skip
        for noisy, masked, p_mask in distinct(rows_of):
            size = int(masked.sum())
            p = float(p_mask)
            chance = p**size * (1 - p) ** (L - size) if masking == "bernoulli" else 1 / math.comb(L, size)
            positions = masked.nonzero().squeeze(1)
            nll = nll_of(table, noisy[None], tokens[None], positions)
            total += float(weight) * chance * float((bound_weights(positions, p_mask[None], L) * nll).sum())
    return total


def distinct(noised) -> list[tuple[torch.Tensor, ...]]:
    """One draw of each mask; all that the time allows must have come up."""
    code = (noised.masked * 2 ** torch.arange(L)).sum(1)
    first = {int(c): i for i, c in reversed(list(enumerate(code)))}
    counts = {int(noised.masked[i].sum()) for i in first.values()}
    assert len(first) == sum(math.comb(L, size) for size in counts)
    return [(noised.noisy[i], noised.masked[i], noised.p_mask[i]) for i in first.values()]


def gauss_legendre(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights on [0, 1], exact for polynomials up to degree 2n - 1."""
    k = torch.arange(1, n, dtype=torch.float64)
    beta = k / (4 * k**2 - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return (values + 1) / 2, vectors[0] ** 2


ALL_SEQUENCES = list(itertools.product(range(V), repeat=L))


@pytest.mark.parametrize("masking", ["bernoulli", "fixed_count"])
@pytest.mark.parametrize("tokens", ALL_SEQUENCES[::13])
def test_expected_loss_is_the_exact_bound(table: torch.Tensor, tokens: tuple[int, ...], masking: str) -> None:
    x = torch.tensor(tokens)
    assert expected_loss(table, x, masking) == pytest.approx(exact_bound(table, x), rel=1e-12)


def test_the_bound_lies_above_the_exact_negative_log_likelihood(table: torch.Tensor) -> None:
    exact = [exact_nll(table, torch.tensor(tokens)) for tokens in ALL_SEQUENCES]
    assert sum(math.exp(-nll) for nll in exact) == pytest.approx(1.0, rel=1e-12)
    bounds = [exact_bound(table, torch.tensor(tokens)) for tokens in ALL_SEQUENCES]
    assert all(bound >= nll - 1e-12 for bound, nll in zip(bounds, exact, strict=True))


def test_eps_shifts_the_expectation_by_a_known_little(table: torch.Tensor) -> None:
    """With eps the times cover [eps, 1]: off by less than eps * L nats-per-token-sized terms, not more."""
    x = torch.tensor(ALL_SEQUENCES[40])
    with_eps = expected_loss(table, x, "bernoulli", eps=1e-3)
    assert with_eps != exact_bound(table, x)
    assert with_eps == pytest.approx(exact_bound(table, x), rel=2e-3)
