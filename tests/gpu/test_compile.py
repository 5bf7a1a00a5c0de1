"""Compiled blocks compute what plain ones do, and a run in which every size varies compiles them few times.

On a CPU the graphs that the compiler cuts out are counted and run as they are; on a GPU they are compiled as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llada.backbone import attention
from lit_llada.backbone.attention import AttentionMask, Backend
from lit_llada.backbone.transformer import Backbone
from lit_llada.training.sharding import compile_blocks
from tests.gpu.nets import VOCABULARY, batch_of, distance, loss_and_gradients, net_of

# Rows and tokens of a step, and whether it trains. 32 is the nets' width too, 4 their number of heads.
RUN = [(4, 32, True), (4, 17, True), (4, 32, True), (3, 9, True), (4, 32, False), (2, 23, False), (5, 32, True)]
LOSS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
GRADIENT = {torch.float32: 1e-4, torch.bfloat16: 0.2}  # of all together; a router that is rounded may choose otherwise
MOST_RECOMPILATIONS = 4


class Counting:
    """A backend of torch.compile that counts the graphs it is given."""

    def __init__(self, device: torch.device) -> None:
        self.graphs = 0
        self._compile = torch._dynamo.lookup_backend("inductor") if device.type == "cuda" else None

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward if self._compile is None else self._compile(graph, inputs)


@pytest.fixture
def counting(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    torch._dynamo.reset()
    backend = Counting(device)
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=backend))
    # More would be refused, and then nothing is compiled any more: an error here, a line in the log of a run.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield backend


def compiled_and_plain(kind: str, dtype: torch.dtype, device: torch.device) -> list[Backbone]:
    nets = [net_of(kind, dtype, device) for _ in range(2)]
    compile_blocks(nets[0])
    nets[0].fused = device.type == "cuda"  # on a CPU the head's softmax would take a minute; see test_kernels
    return nets


def compare(compiled: Backbone, plain: Backbone, rows: int, length: int, train: bool) -> None:
    device, dtype = plain.embed.weight.device, plain.embed.weight.dtype
    batch = batch_of(rows, length, device, seed=rows * length)
    if not train:
        with torch.no_grad():
            a, b = (net.weighted_nll(batch[0], *batch)[0] for net in (compiled, plain))
        assert distance(a, b) <= LOSS[dtype]
        return
    (loss, *grads), (wanted, *plain_grads) = (loss_and_gradients(net, *batch) for net in (compiled, plain))
    assert distance(loss, wanted) <= LOSS[dtype]
    a, b = (torch.cat([grad.flatten().double() for grad in each]) for each in (grads, plain_grads))
    assert distance(a, b) <= GRADIENT[dtype]


@pytest.mark.parametrize(
    ("kind", "dtype", "compilations"), [("dense", torch.float32, 4), ("moe", torch.bfloat16, 2)], ids=["dense", "moe"]
)
def test_a_run_of_all_sizes_compiles_few_times(
    device: torch.device, counting: Counting, kind: str, dtype: torch.dtype, compilations: int
) -> None:
    """Blocks with and without a gradient; in a dense net also a last block where only masked positions go on."""
    compiled, plain = compiled_and_plain(kind, dtype, device)
    for step in RUN:
        compare(compiled, plain, *step)
    assert counting.graphs == compilations
    assert counting.graphs - 1 <= MOST_RECOMPILATIONS


def packed_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, causal: bool) -> Tensor:
    """A kernel of packed documents that the compiler can read: ``[N, H, h]``."""
    document = torch.searchsorted(cu_seqlens, torch.arange(len(q), device=q.device, dtype=torch.int32), right=True)
    parts = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = F.scaled_dot_product_attention(*parts, attn_mask=document[:, None] == document, enable_gqa=True)
    return out[0].transpose(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sdpa", "varlen"])
def test_documents_of_all_sizes_compile_once(
    device: torch.device, counting: Counting, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, plain = compiled_and_plain("moe", torch.bfloat16, device)
    compiled.attention, plain.attention = backend, "sdpa"
    if device.type == "cpu":
        monkeypatch.setattr(attention, "lacks", lambda *_: None)
        monkeypatch.setattr(attention, "packed_kernel", lambda *_: packed_attention)
    elif backend == "varlen" and (lacking := attention.lacks(backend, 8, torch.bfloat16, device)):
        pytest.skip(f"varlen needs {lacking}")
    for rows, length in ((4, 32), (3, 17), (5, 32)):
        tokens, where, scale = batch_of(rows, length, device, seed=length)
        mask = AttentionMask(documents=(tokens < VOCABULARY // 5).cumsum(1))
        a, b = (net.weighted_nll(tokens, tokens, where, scale, mask)[0] for net in (compiled, plain))
        assert distance(a, b) <= LOSS[torch.bfloat16]
    assert counting.graphs == 1


@pytest.mark.slow
def test_float32_experts_run_between_compiled_parts(device: torch.device, counting: Counting) -> None:
    compiled, plain = compiled_and_plain("moe", torch.float32, device)
    for step in RUN[:2]:
        compare(compiled, plain, *step)
    assert counting.graphs >= 3  # before, between and behind the two products of a block


@pytest.mark.slow
def test_checkpointing_and_compilation_go_together(device: torch.device, counting: Counting) -> None:
    compiled, plain = compiled_and_plain("dense", torch.float32, device)
    compiled.checkpointing = True
    for step in RUN[:2]:
        compare(compiled, plain, *step)
    assert 2 <= counting.graphs <= 1 + MOST_RECOMPILATIONS
