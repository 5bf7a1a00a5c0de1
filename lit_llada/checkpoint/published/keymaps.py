"""Key tables: which published tensor is which part of which of ours; one table per family, read both ways.

A parameter of :class:`Backbone` is one published tensor, several put one below the other (queries, keys, values; gate,
up), or, for experts, ``{e}`` of them stacked: ours are ``[E, in, out]`` and the published linear maps ``[out, in]``.
So every published tensor is a *view* of one of our parameters. Importing writes into the view, exporting reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from lit_llada.backbone.config import BackboneConfig
from lit_llada.errors import UserError

Keys = dict[str, tuple[str, ...]]

# A bias goes by the name of its weight.
DENSE: Keys = {
    "embed.weight": ("model.transformer.wte.weight",),
    "norm.weight": ("model.transformer.ln_f.weight",),
    "head.weight": ("model.transformer.ff_out.weight",),
} | {
    f"blocks.{{i}}.{ours}.weight": tuple(f"model.transformer.blocks.{{i}}.{name}.weight" for name in theirs)
    for ours, theirs in {
        "attn_norm": ["attn_norm"],
        "attn.qkv": ["q_proj", "k_proj", "v_proj"],
        "attn.q_norm": ["q_norm"],
        "attn.k_norm": ["k_norm"],
        "attn.out": ["attn_out"],
        "mlp_norm": ["ff_norm"],
        "mlp.gate_up": ["ff_proj", "up_proj"],
        "mlp.down": ["ff_out"],
    }.items()
}

LLAMA: Keys = {
    "embed.weight": ("model.embed_tokens.weight",),
    "norm.weight": ("model.norm.weight",),
    "head.weight": ("lm_head.weight",),
} | {
    f"blocks.{{i}}.{ours}.weight": tuple(f"model.layers.{{i}}.{name}.weight" for name in theirs)
    for ours, theirs in {
        "attn_norm": ["input_layernorm"],
        "attn.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "attn.q_norm": ["self_attn.q_norm"],
        "attn.k_norm": ["self_attn.k_norm"],
        "attn.out": ["self_attn.o_proj"],
        "mlp_norm": ["post_attention_layernorm"],
        "mlp.gate_up": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.down": ["mlp.down_proj"],
    }.items()
}

MOE: Keys = LLAMA | {
    f"blocks.{{i}}.mlp.{ours}": tuple(f"model.layers.{{i}}.{name}" for name in theirs)
    for ours, theirs in {
        "router.weight": ["mlp.gate.weight"],
        "expert_bias": ["mlp.expert_bias"],
        "gate_up": ["mlp.experts.{e}.gate_proj.weight", "mlp.experts.{e}.up_proj.weight"],
        "down": ["mlp.experts.{e}.down_proj.weight"],
        "shared.gate_up.weight": ["shared_expert.gate_proj.weight", "shared_expert.up_proj.weight"],
        "shared.down.weight": ["shared_expert.down_proj.weight"],
    }.items()
}


class Piece(NamedTuple):
    """A published tensor and where it lies in a parameter of ours."""

    name: str
    place: tuple[int | slice, ...]
    transposed: bool

    def of(self, parameter: Tensor) -> Tensor:
        """The view of ``parameter`` that has the published shape."""
        view = parameter[self.place]
        return view.mT if self.transposed else view


def pieces(keys: Keys, name: str, shape: Sequence[int], config: BackboneConfig) -> Iterator[Piece]:
    """The published tensors that one parameter is made of.

    Args:
        keys: the family's table.
        name: name of the parameter (or buffer) in ``Backbone.state_dict()``.
        shape: shape of the parameter; with fewer rows where only the first ones are published.
        config: configuration of the net; it says how wide queries, keys and values are.

    Raises:
        UserError: the family has nothing of that name.
    """
    layer = re.match(r"blocks\.(\d+)\.", name)
    pattern = re.sub(r"^blocks\.\d+", "blocks.{i}", name)
    templates = keys.get(pattern)
    if templates is None and pattern.endswith(".bias"):
        templates = tuple(re.sub("weight$", "bias", key) for key in keys.get(re.sub("bias$", "weight", pattern), ()))
    if not templates:
        raise UserError(f"this published format has no tensor for {name}")
    stacked = "{e}" in templates[0]
    size = shape[-1] if stacked else shape[0]
    heads = [config.n_heads, config.kv_heads, config.kv_heads]
    widths = [n * config.head_width for n in heads] if len(templates) == 3 else [size // len(templates)] * 2
    for e in range(shape[0] if stacked else 1):
        start = 0
        for template, width in zip(templates, widths, strict=False):
            rows = slice(start, start + width)
            theirs = template.replace("{i}", layer[1] if layer else "").replace("{e}", str(e))
            yield Piece(theirs, (e, slice(None), rows) if stacked else (rows,), stacked)
            start += width
