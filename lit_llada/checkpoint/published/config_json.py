"""Turns a published ``config.json`` into a :class:`BackboneConfig` and back; what one side cannot say is refused."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lit_llada.backbone.config import BackboneConfig
from lit_llada.checkpoint.published.families import AUTOREGRESSIVE, COMMON, DENSE, MOE, Family, Fields, number
from lit_llada.errors import UserError


def family_of(fields: Fields) -> Family:
    """Which format is this? Told by ``architectures``, else by the fields; ``model_type`` is "llada" in both families.

    Raises:
        UserError: none of them.
    """
    names = fields.get("architectures") or []
    for family in (MOE, AUTOREGRESSIVE, DENSE):
        if set(names) & set(family.architectures) and not (family is DENSE and "num_experts" in fields):
            return family
    if "num_experts" in fields:
        return MOE
    if "d_model" in fields:
        return DENSE
    known = [name for family in (DENSE, MOE, AUTOREGRESSIVE) for name in family.architectures]
    raise UserError(f"architectures is {names}; give a checkpoint of one of {', '.join(known)}")


def read_config(fields: Fields) -> tuple[Family, BackboneConfig]:
    """The family and the architecture of a published folder.

    Raises:
        UserError: names the field that is missing, unknown, or asks for what :class:`Backbone` does not compute.
    """
    family = family_of(fields)
    known = {*COMMON, *family.needed, *family.optional, *family.fixed, *family.without_effect, *family.reads}
    for name, value in fields.items():
        wanted = family.fixed.get(name)
        if name in family.fixed and value != wanted and not (value is None and not wanted):
            raise UserError(f"{name} is {value!r}; only {wanted!r} is built")
        if name not in known:
            raise UserError(
                f"{name} is {value!r}, a field that {family.title} does not have: it may change the computation; "
                "remove it from config.json if you know that it does not"
            )
    same = {ours: number(fields, theirs) for theirs, ours in family.needed.items()}
    given = {theirs: ours for theirs, ours in family.optional.items() if fields.get(theirs) is not None}
    same |= {ours: number(fields, theirs) for theirs, ours in given.items()}
    return family, BackboneConfig(**(same | family.read(fields)))


def write_config(config: BackboneConfig) -> tuple[Family, Fields]:
    """The fields that say what ``config`` says: LLaDA, LLaDA-MoE, or the Llama family for a causal net.

    Raises:
        UserError: names a property of the net that the format cannot say.
    """
    family = AUTOREGRESSIVE if config.causal else MOE if config.n_experts else DENSE
    ours = asdict(config)
    fields = {"architectures": list(family.architectures[:1]), **family.without_effect, **family.fixed}
    fields |= {theirs: ours[name] for theirs, name in {**family.needed, **family.optional}.items()}
    fields |= family.write(config)
    back = _meaning(read_config(fields)[1])
    for name, value in _meaning(config).items():
        if value != back[name]:
            raise UserError(
                f"backbone.{name} is {value!r}, which a config.json of {family.title} cannot say (it means "
                f"{back[name]!r}): keep the .ckpt"
            )
    return family, fields


def same_net(a: BackboneConfig, b: BackboneConfig) -> bool:
    """Whether two configurations describe the same function of the same parameters."""
    return _meaning(a) == _meaning(b)


def _meaning(config: BackboneConfig) -> dict[str, Any]:
    """The fields that matter, with what None and flags stand for; not how weights began, nor how angles are rounded."""
    fields = asdict(config) | {
        "n_kv_heads": config.kv_heads,
        "head_dim": config.head_width,
        "qkv_bias": config.qkv_bias or config.bias,
        "dense_layers": sorted(config.dense_layers),
    }
    unused = ["init", "init_std", "rope_full_precision"]
    if not config.n_experts:
        unused += ["experts_per_token", "expert_dim", "shared_expert_dim", "dense_layers", "renormalize_experts"]
        unused += ["expert_bias"]
    return {name: value for name, value in fields.items() if name not in unused}
