"""Norm and rotary embedding: their definitions, and the precision that each of them takes."""

from __future__ import annotations

import pytest
import torch

from lit_llada.backbone.layers import RMSNorm, rotary_table, rotate

# --- positions and precision ---


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotation_makes_scores_depend_on_the_distance_only(fraction: float) -> None:
    table = rotary_table(40, int(8 * fraction), 10_000.0, torch.float64, torch.device("cpu"))
    q, k = torch.randn(2, 1, 1, 1, 8).double().expand(2, 1, 40, 1, 8)
    q, k = (rotate(x, table, True)[0, :, 0] for x in (q, k))
    scores = q @ k.T
    for distance in (-7, 0, 1, 12):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-12, rtol=0)
    assert (scores.diagonal(1)[0] - scores.diagonal(2)[0]).abs() > 1e-3
    torch.testing.assert_close(q[0], torch.linalg.vector_norm(q[0]) / torch.linalg.vector_norm(q[5]) * q[0])


def test_rotation_is_half_split_and_leaves_the_rest_alone() -> None:
    table = rotary_table(5, 4, 100.0, torch.float64, torch.device("cpu"))
    x = torch.randn(1, 5, 1, 6).double()
    turned = rotate(x, table, True)
    for position in range(5):
        for j, theta in enumerate((1.0, 0.1)):
            pair = torch.complex(x[0, position, 0, j], x[0, position, 0, j + 2])
            expected = pair * torch.polar(torch.tensor(1.0).double(), torch.tensor(position * theta).double())
            got = turned[0, position, 0]
            torch.testing.assert_close(torch.complex(got[j], got[j + 2]), expected)
    assert torch.equal(turned[..., 4:], x[..., 4:])


def test_the_two_precision_rules_of_the_rotation() -> None:
    table = rotary_table(300, 8, 10_000.0, torch.bfloat16, torch.device("cpu"))
    assert table.dtype == torch.float32  # bfloat16 cannot tell positions 257 and 258 apart
    assert rotary_table(300, 8, 10_000.0, torch.float64, torch.device("cpu")).dtype == torch.float64
    x = torch.randn(1, 300, 2, 8).bfloat16()
    wide, narrow = rotate(x, table, True), rotate(x, table, False)
    assert wide.dtype == narrow.dtype == torch.bfloat16
    assert torch.equal(wide, rotate(x.float(), table, True).bfloat16())
    (cos, sin), (a, b) = table.bfloat16()[:, :, None], x.chunk(2, -1)
    assert torch.equal(narrow, torch.cat((a * cos - b * sin, b * cos + a * sin), -1))
    assert not torch.equal(wide, narrow)


def test_norm_casts_before_it_scales() -> None:
    norm, x = RMSNorm(8, 1e-5).bfloat16(), torch.randn(50, 8).bfloat16()
    norm.weight.data.uniform_(0.5, 2)
    wide = x.float() * (x.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    assert torch.equal(norm(x), wide.bfloat16() * norm.weight)
    assert not torch.equal(norm(x), (wide * norm.weight.float()).bfloat16())
