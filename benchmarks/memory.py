"""How much memory does LLaDA-8B take on each card, and which command does it? Computed, not measured.

Weights, gradients and moments follow from the parameter counts. Activations follow from the tensors that a block keeps
for its backward pass under bf16-mixed; a test holds these against the allocator on a small net. The head, a pass of the
sampler and what FSDP2 gathers are counted by their largest tensors only. A card also needs some GB for its kernels and
for what its allocator cannot use.
"""

from __future__ import annotations

from typing import NamedTuple

from lit_llada.backbone.config import SIZES, BackboneConfig
from lit_llada.backbone.head import CHUNK_LOGITS

RANK = 8
LENGTH = 4096  # of a row in the recipes


class Use(NamedTuple):
    """Something to do with a net: bytes on each card by what takes them, and the command."""

    name: str
    command: str
    parts: dict[str, float]


def block_activations(config: BackboneConfig, frozen: bool) -> int:
    """Bytes per token that a dense block keeps for its backward pass, under bf16-mixed with a fused attention.

    Args:
        config: dense.
        frozen: the norms need no gradient, as with adapters, whose own part is too small to count.
    """
    c, q, kv = config, config.n_heads * config.head_width, config.kv_heads * config.head_width
    residual = 2 * 4 * c.d_model  # float32, before attention and before the mlp
    normed = 0 if frozen else 2 * 4 * c.d_model
    attention = 2 * (c.d_model + (q + 2 * kv) + (q + kv) + q)  # input, projections, rotated ones, output
    mlp = 2 * (c.d_model + 2 * c.ff_dim + c.ff_dim + c.ff_dim)  # input, gate and up, silu(gate), their product
    return residual + normed + attention + mlp


def activations(config: BackboneConfig, tokens: int, frozen: bool, checkpointing: bool) -> int:
    """Bytes of a forward and backward pass at its worst moment: what is kept, and gradients of activations.

    Args:
        config: dense.
        tokens: in the micro-batch.
        frozen: as above.
        checkpointing: each block keeps its input only, and all of it again while its turn lasts.
    """
    block, layers = block_activations(config, frozen), config.n_layers
    kept = 4 * config.d_model * layers + block if checkpointing else block * layers
    # The gradient of gate and up; with adapters also what comes back on two paths at once. Fitted to the allocator.
    flying = 4 * config.ff_dim + (12 * config.d_model if frozen else 0)
    return tokens * (kept + flying)


def adapter_parameters(config: BackboneConfig, rank: int) -> int:
    """Of adapters on the four linear layers of each dense block."""
    c, q, kv = config, config.n_heads * config.head_width, config.kv_heads * config.head_width
    sides = (c.d_model + q + 2 * kv) + (q + c.d_model) + (c.d_model + 2 * c.ff_dim) + (c.ff_dim + c.d_model)
    return rank * sides * c.n_layers


def head(config: BackboneConfig, positions: int, trained: bool) -> float:
    """Of the loss, compiled: a chunk of logits in bfloat16, the positions and their gradients in float32.

    If W is trained, also W in bfloat16 and a chunk's part of its gradient; the gradient itself is not counted here.
    """
    chunk = 2 * min(positions * config.vocabulary, CHUNK_LOGITS["cuda"])
    return chunk + positions * config.d_model * 8 + (2 * 2 * config.vocabulary * config.d_model if trained else 0)


def adapted(config: BackboneConfig, rows: int) -> dict[str, float]:
    """Training adapters on a bfloat16 base, on one card."""
    tokens = rows * LENGTH
    return {
        "weights": 2 * config.parameter_count(),
        "gradients, moments": 16 * adapter_parameters(config, RANK),
        "activations": activations(config, tokens, frozen=True, checkpointing=True),
        "head": head(config, tokens // 2, trained=False),
    }


def sharded(config: BackboneConfig, rows: int, cards: int) -> dict[str, float]:
    """Training all weights under FSDP2, on each card."""
    tokens, vocabulary = rows * LENGTH, 2 * config.vocabulary * config.d_model
    block = config.non_embedding_parameters() // config.n_layers
    return {
        "weights": 4 * config.parameter_count() / cards,
        "gradients, moments": 12 * config.parameter_count() / cards,
        # Two blocks in bfloat16, one's gradient in bfloat16 and float32; embedding and head in float32 with their
        # gradients, and these once more where they are sent.
        "gathered": (2 * 2 + 2 + 4) * block + 3 * 4 * vocabulary,
        "activations": activations(config, tokens, frozen=False, checkpointing=True),
        "head": head(config, tokens // 2, trained=True),
    }


def sampled(config: BackboneConfig, rows: int, length: int, block_length: int) -> dict[str, float]:
    """Sampling with bfloat16 weights, keys and values of the whole canvas cached."""
    cache = 2 * 2 * config.kv_heads * config.head_width * config.n_layers
    return {
        "weights": 2 * config.parameter_count(),
        "activations": rows * length * (cache + block_activations(config, frozen=True)),
        "head": rows * block_length * config.vocabulary * (2 + 4 + 4),
    }


def uses(config: BackboneConfig) -> list[Use]:
    """The rows of the table, for LLaDA-8B's shape."""
    lora = f"--model.lora.rank {RANK} --model.lora.base bfloat16 --trainer.devices 1"
    train = "--model.checkpointing true --trainer.precision bf16-mixed --model.init_from CHECKPOINT"
    sft = "lit-llada fit -c configs/recipe/sft.yaml -c configs/data/chat.yaml"
    vrpo = "lit-llada fit -c configs/recipe/vrpo.yaml -c configs/data/preference.yaml"
    ask = "--dtype bfloat16 --new_tokens 256 --block_length 32 --cache dual"
    return [
        Use("sampling, 128 + 256 tokens", f"lit-llada sample CHECKPOINT PROMPT {ask}", sampled(config, 1, 384, 32)),
        Use(
            "the same, batch of 16",
            f"lit-llada sample CHECKPOINT --file prompts.txt --batch_size 16 {ask}",
            sampled(config, 16, 384, 32),
        ),
        Use("SFT with LoRA, 2 x 4,096 tokens", f"{sft} {train} {lora}", adapted(config, 2)),
        Use("VRPO with LoRA, 4 pairs in 8 x 4,096 tokens at most", f"{vrpo} {train} {lora}", adapted(config, 8)),
        Use(
            "full SFT on 8 cards, 2 x 4,096 tokens each",
            f"{sft} -c configs/cluster/fsdp2.yaml {train} --trainer.devices 8",
            sharded(config, 2, 8),
        ),
    ]


def markdown(rows: list[Use]) -> str:
    """GB (1e9 bytes) on each card, and the commands below it."""
    columns = ["weights", "gradients, moments", "gathered", "activations", "head"]
    lines = [["GB on each card, computed", *columns, "in all"], ["---"] + ["---:"] * (len(columns) + 1)]
    for number, use in enumerate(rows, 1):
        shares = [f"{use.parts[name] / 1e9:.1f}" if name in use.parts else "" for name in columns]
        lines.append([f"{number}. {use.name}", *shares, f"{sum(use.parts.values()) / 1e9:.1f}"])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    commands = "\n".join(f"{number}. `{use.command}`" for number, use in enumerate(rows, 1))
    return f"{table}\n\n{commands}"


if __name__ == "__main__":
    print(markdown(uses(SIZES["8b"])))
