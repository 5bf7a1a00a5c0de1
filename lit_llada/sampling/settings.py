"""Sampling options of the commands, and where they come from: a preset, the checkpoint's own plan, changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from lit_llada.checkpoint.generation import KEY
from lit_llada.errors import UserError
from lit_llada.sampling.plan import PRESETS, Plan, preset
from lit_llada.seeding import mix

if TYPE_CHECKING:
    from lit_llada.backbone.transformer import Backbone
    from lit_llada.sampling.predictor import Predictor

Cache = Literal["prefix", "dual", "vicinity"]  # the same as sampling.cached.Scheme, which would import torch


@dataclass(frozen=True)
class Settings:
    """Everything that decides an answer besides the checkpoint and the prompt.

    Args:
        plan: the policies of the sampler.
        new_tokens: masks behind a prompt, and in a gap that does not say how many.
        guidance: scale of the classifier-free guidance; it asks the net for two canvases in one.
        cache: remember keys and values of what does not change much: ``prefix``, ``dual`` or ``vicinity``; approximate.
        refresh_every: with a cache, compute the whole canvas in every n-th step of a block; None only where one begins.
        seed: seed of the noise.
    """

    plan: Plan = PRESETS["fast"]
    new_tokens: int = 128
    guidance: float = 0.0
    cache: Cache | None = None
    refresh_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UserError: an option outside its range, or two that exclude each other.
        """
        if self.new_tokens < 1:
            raise UserError(f"new_tokens is {self.new_tokens}; ask for at least 1")
        if self.refresh_every is not None and self.refresh_every < 1:
            raise UserError(f"refresh_every is {self.refresh_every}; it must be at least 1")
        if self.guidance and self.cache:
            raise UserError("guidance and cache exclude each other: a cache remembers one canvas; leave one out")

    def changed(self, **changes: Any) -> Settings:
        """The same with other values of its own fields or of the plan's.

        Raises:
            UserError: see there.
        """
        own = {name: value for name, value in changes.items() if name in PLAIN}
        return replace(self, plan=change_plan(self.plan, **_without(changes, own)), **own)

    def prompt_seed(self, number: int) -> int:
        """The seed of the noise of prompt ``number``: it depends on nothing else, such as who shares its batch."""
        return mix(self.seed, number)

    def predictor(self, net: Backbone, mask_id: int) -> Predictor:
        """The net as the sampler asks it: plain, guided or cached; a new one for each run."""
        if self.guidance:
            from lit_llada.sampling.guided import Guided

            return Guided(net, self.guidance, mask_id)
        if self.cache:
            from lit_llada.sampling.cached import Cached

            return Cached(net, self.cache, refresh_every=self.refresh_every)
        from lit_llada.sampling.predictor import Plain

        return Plain(net)

    def in_words(self) -> str:
        """Every value on a line of its own; what is not the plan's usual value is marked with a star."""
        usual, values = asdict(Plan()), asdict(self.plan)
        lines = [f"  {name} {_word(getattr(self, name))}" for name in PLAIN]
        for name, value in values.items():
            mark = " " if value == usual[name] else "*"
            lines.append(f"{mark} {name} {_word(value)}")
        return "\n".join(lines)


PLAIN = [field.name for field in fields(Settings) if field.name != "plan"]


def choose_plan(name: str | None, generation: Mapping[str, Any]) -> Plan:
    """The named preset; without a name what ``calibrate`` left with the checkpoint; ``fast`` where it left nothing.

    Raises:
        UserError: no such preset, or a saved plan that this version does not know.
    """
    if name is not None:
        return preset(name)
    saved = generation.get(KEY, {})
    try:
        return Plan(**saved["plan"]) if saved else PRESETS["fast"]
    except (TypeError, KeyError) as error:
        raise UserError(f"the checkpoint's saved plan is not one of this version ({error}); give --preset") from None


def change_plan(plan: Plan, **changes: Any) -> Plan:
    """Some options changed; another count or remask rule comes with its own usual bound.

    Raises:
        UserError: an option outside its range, or two that exclude each other.
    """
    for rule, bound in (("count", "bound"), ("remask", "remask_bound")):
        if changes.get(rule, getattr(plan, rule)) != getattr(plan, rule):
            changes = {bound: None, **changes}
    return replace(plan, **changes)


def _without(items: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in items.items() if name not in others}


def _word(value: Any) -> str:
    """As it is typed: null, true, text without quotes."""
    return value if isinstance(value, str) else json.dumps(value)
