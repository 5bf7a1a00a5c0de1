"""A plan: the policies of a sampling run in one value, and presets that are asked for by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from lit_llada.errors import UserError
from lit_llada.sampling.rules import RULES

Order = Literal["low_confidence", "random", "margin", "entropy", "left_to_right"]
Remask = Literal["none", "remdm", "verify"]
EosRule = Literal["free", "last", "never"]
Length = Literal["fixed", "rho_eos"]

if TYPE_CHECKING:
    Count = str  # the names are known when the program runs: a rule is one entry of RULES
else:
    Count = Literal[("quota", *RULES)]  # what options in YAML may say: the rules that stand in rules.py


def count_names() -> tuple[str, ...]:
    """The names of all count rules, those among them that were added since this module was imported."""
    return ("quota", *RULES)


@dataclass(frozen=True)
class Plan:
    """Which tokens are committed first, how many in a step, what is taken back, where a row ends.

    Args:
        steps: with ``count: quota``, steps in all, shared evenly among a row's blocks; None for one token a step.
        block_length: a row's masks are filled in blocks of this many, from left to right; None for one block.
        aligned: blocks begin at multiples of ``block_length`` in the row, not at its first mask.
        order: who goes first. ``low_confidence``: the likeliest candidate (LLaDA's low-confidence remasking);
            ``random``: ancestral sampling; ``margin``: the largest lead over the second; ``entropy``: the surest
            distribution; ``left_to_right``.
        count: how many go. ``quota``: the published even share; else a rule of
            :data:`~lit_llada.sampling.rules.RULES`: ``threshold``, ``factor``, ``frechet``, ``entropy_bound``.
        bound: bound of the count rule; None for its usual value.
        temperature: 0 takes the likeliest token, 1 samples from the model. Confidence is always that of temperature 1.
        remask: ``remdm`` takes committed tokens of the block back with probability min(remask_bound, what still lets
            the block end in time) (2503.00307; needs ``count: quota``); ``verify`` asks again for each token of a
            parallel commit with only that one masked, and takes it back below ``remask_bound`` (as WINO does with a
            shadow block, 2507.18578).
        remask_bound: see ``remask``; None for 0.1 and 0.9.
        eos: end tokens are ``free``, committed ``last`` (when no other candidate is left), or ``never`` produced.
        stop_at_eos: a row ends with the block that contains an end token; what is behind becomes EOS. What is read of
            the answer, up to its first end, is exactly the same.
        length: ``fixed``, or ``rho_eos`` (2601.22527): the row grows while less than 0.3 of its masks expect EOS, and
            shrinks while more than 0.7 do (needs another count than quota).
        grow: masks that are added or removed at once.
        max_length: the longest row that may come of growing.
        official: follow the published code to the letter, its quirks too: steps that have nothing to reveal run the net
            all the same, and its rule for late EOS renormalises probabilities (and forgets EOS above temperature 0).
    """

    steps: int | None = None
    block_length: int | None = None
    aligned: bool = False
    order: Order = "low_confidence"
    count: Count = "quota"
    bound: float | None = None
    temperature: float = 0.0
    remask: Remask = "none"
    remask_bound: float | None = None
    eos: EosRule = "free"
    stop_at_eos: bool = False
    length: Length = "fixed"
    grow: int = 8
    max_length: int = 2048
    official: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UserError: an option outside its range, or two that exclude each other.
        """
        kinds = {"order": Order, "remask": Remask, "eos": EosRule, "length": Length}
        names = {name: get_args(kind) for name, kind in kinds.items()} | {"count": count_names()}
        for name, known in names.items():
            if getattr(self, name) not in known:
                raise UserError(f"sampling: {name} is {getattr(self, name)!r}; it is one of {', '.join(known)}")
        ranges = {
            "steps": (self.steps is None or self.steps >= 1, "at least 1"),
            "block_length": (self.block_length is None or self.block_length >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "at least 0"),
            "bound": (self.bound is None or self.bound >= 0, "at least 0"),
            "remask_bound": (self.remask_bound is None or 0 <= self.remask_bound <= 1, "in 0..1"),
            "grow": (self.grow >= 1, "at least 1"),
        }
        for name, (fine, what) in ranges.items():
            if not fine:
                raise UserError(f"sampling: {name} is {getattr(self, name)}; it must be {what}")
        if self.remask == "remdm" and self.count != "quota":
            raise UserError(f"sampling: remask remdm needs count quota, not {self.count}")
        if self.length == "rho_eos" and self.count == "quota":
            raise UserError("sampling: length rho_eos needs a count that adapts; set count: threshold")
        if self.count != "quota" and self.steps is not None:
            raise UserError(f"sampling: count {self.count} decides the number of steps by itself; leave steps out")
        if self.aligned and self.block_length is None:
            raise UserError("sampling: aligned needs a block_length")

    @property
    def limit(self) -> float:
        """The bound of the count rule."""
        if self.bound is not None or self.count == "quota":
            return self.bound or 0.0
        return RULES[self.count].bound

    @property
    def doubt(self) -> float:
        """The bound of the rule that takes tokens back."""
        return {"remdm": 0.1, "verify": 0.9}.get(self.remask, 0.0) if self.remask_bound is None else self.remask_bound


PRESETS: dict[str, Plan] = {
    # LLaDA's own sampler: one token a step, the whole answer at once, to the letter.
    "official": Plan(official=True),
    # The numbers of published tables: the same tokens in blocks, nothing run in vain, end tokens late.
    "benchmark": Plan(block_length=32, eos="last"),
    # All that are sure enough, block by block, and no block behind the end.
    "fast": Plan(block_length=32, count="threshold", stop_at_eos=True),
}


def preset(name: str, **changes: object) -> Plan:
    """A named plan with some options changed.

    Raises:
        UserError: no such preset, or an option outside its range.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)  # type: ignore[arg-type]
