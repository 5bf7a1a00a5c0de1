"""``lit-llada convert`` (import, export, upcycle) and ``consolidate``: checkpoints of one kind become another kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from lit_llada.cli.parser import Parser
from lit_llada.errors import UserError

DType = Literal["float32", "bfloat16", "float16"]

MODULE = "lit_llada.PretrainingModule"  # what a converted checkpoint is loaded as

USAGE = """\
usage: lit-llada convert import SOURCE TARGET    a published folder, or org/name on the hub -> one file to start from
       lit-llada convert export SOURCE TARGET    a checkpoint of a run -> a folder in the published layout
       lit-llada convert upcycle SOURCE TARGET   a dense checkpoint -> a sparse one that computes the same at first

  lit-llada convert import GSAI-ML/LLaDA-8B-Base models/llada-8b.ckpt --dtype bfloat16
  lit-llada convert import ./Qwen3-0.6B-Base models/start.ckpt     # autoregressive; becomes bidirectional, with a mask
  lit-llada convert export runs/demo/checkpoints/step=0002000.ckpt exported/demo --dtype bfloat16
  lit-llada convert upcycle runs/demo/checkpoints/step=0002000.ckpt models/moe.ckpt --n_experts 8 --experts_per_token 2

The families are LLaDA, LLaDA-MoE, and Llama, Qwen2, Qwen3 to start from. lit-llada convert import --help (or export,
or upcycle) lists the options.
"""


def convert(words: list[str]) -> int:
    """``lit-llada convert import | export | upcycle SOURCE TARGET``."""
    if words[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    ways: dict[str, Callable[..., None]] = {"import": import_folder, "export": export_folder, "upcycle": upcycle_net}
    if not words or words[0] not in ways:
        said = f"convert: {words[0]!r} is no direction" if words else "convert: no direction"
        raise UserError(f"{said}; say lit-llada convert import, export or upcycle, then SOURCE TARGET")
    way = ways[words[0]]
    parser = Parser(prog=f"lit-llada convert {words[0]}", description=(way.__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=str, help="the checkpoint to read")
    parser.add_argument("target", type=str, help="what to write; it must not exist")
    parser.add_function_arguments(way, skip={"source", "target"}, fail_untyped=False)
    way(**parser.parse_args(words[1:]).as_dict())
    return 0


def consolidate(words: list[str]) -> int:
    """``lit-llada consolidate SOURCE TARGET``."""
    from lit_llada.checkpoint.shards import consolidate as run

    description = "A sharded checkpoint folder -> one file that any strategy loads."
    parser = Parser(prog="lit-llada consolidate", description=description)
    parser.add_argument("source", help="the checkpoint folder")
    parser.add_argument("target", help="the file to write")
    options = parser.parse_args(words)
    run(options.source, options.target)
    print(options.target)
    return 0


def import_folder(
    source: str,
    target: str,
    dtype: DType | None = None,
    mask_id: int | None = None,
    causal: bool = False,
) -> None:
    """A published folder -> one file that ``fit --model.init_from`` starts from, with its tokenizer inside.

    Args:
        source: a folder in the Hugging Face layout, or org/name on the hub.
        target: the file to write.
        dtype: number type of the weights; null keeps what is stored.
        mask_id: the mask token, where the folder does not say it.
        causal: keep the causal attention of an autoregressive folder.
    """
    from lit_llada.checkpoint.load import load_checkpoint
    from lit_llada.checkpoint.own import write_run

    _refuse_existing(target)
    checkpoint = load_checkpoint(source, _torch(dtype), mask_id=mask_id, causal=causal)
    write_run(checkpoint.net, checkpoint.mask_id, checkpoint.files, Path(target), MODULE)
    config = checkpoint.net.config
    print(
        f"{target}: {config.parameter_count():,} parameters, vocabulary {config.vocabulary}, mask {checkpoint.mask_id}"
    )


def export_folder(
    source: str,
    target: str,
    dtype: DType | None = None,
    max_shard_size: str = "5GB",
    ema: bool | None = None,
    mask_id: int | None = None,
    tokenizer: str | None = None,
) -> None:
    """A checkpoint -> a folder in the published layout: config.json, safetensors, tokenizer, model card.

    Args:
        source: a checkpoint of a run: the file, or the folder of shards.
        target: the folder to write.
        dtype: number type of the weights; null keeps what is stored.
        max_shard_size: size of one safetensors file at most, like 500MB or 5GB.
        ema: the averaged weights (true) or the trained ones (false); null takes the averaged ones if there are any.
        mask_id: the mask token, where the checkpoint does not say it.
        tokenizer: a tokenizer.json or its folder; null looks beside the checkpoint and in the run's data.
    """
    from lit_llada.checkpoint.load import load_checkpoint
    from lit_llada.checkpoint.published.write import export_checkpoint

    _refuse_existing(target)
    checkpoint = load_checkpoint(source, _torch(dtype), ema=ema, mask_id=mask_id, tokenizer=tokenizer)
    export_checkpoint(checkpoint, target, max_shard_size=max_shard_size)
    found = (
        "with its tokenizer" if checkpoint.tokenizer else "without a tokenizer: none was found, --tokenizer gives one"
    )
    print(f"{target}: {checkpoint.net.config.parameter_count():,} parameters, {found}")


def upcycle_net(
    source: str,
    target: str,
    n_experts: int = 8,
    experts_per_token: int = 2,
    renormalize: bool = False,
    dense_layers: list[int] = [],  # noqa: B006  (shown by --help; nobody writes to it)
    seed: int = 0,
) -> None:
    """A dense checkpoint -> one file with a mixture of experts that computes the same, to be trained on.

    Args:
        source: a checkpoint of any kind.
        target: the file to write, for ``fit --model.init_from``.
        n_experts: experts of each sparse layer, all of them copies of its dense MLP.
        experts_per_token: how many of them each token visits.
        renormalize: divide their weights by their sum (LLaDA-MoE does not; experts come apart sooner).
        dense_layers: numbers of the layers that stay dense.
        seed: seed of the routers.
    """
    from lit_llada.backbone.upcycle import upcycle
    from lit_llada.checkpoint.load import load_checkpoint
    from lit_llada.checkpoint.own import write_run

    _refuse_existing(target)
    found = load_checkpoint(source)
    net = upcycle(
        found.net, n_experts, experts_per_token, renormalize=renormalize, dense_layers=dense_layers, seed=seed
    )
    write_run(net, found.mask_id, found.files, Path(target), MODULE)
    print(f"{target}: {net.config.parameter_count():,} parameters, {n_experts} experts, {experts_per_token} a token")


def _refuse_existing(target: str) -> None:
    """Before anything is read: eight billion parameters take a while."""
    if Path(target).exists():
        raise UserError(f"{target} exists; remove it or give another name")


def _torch(dtype: DType | None) -> torch.dtype | None:
    return None if dtype is None else getattr(torch, dtype)
