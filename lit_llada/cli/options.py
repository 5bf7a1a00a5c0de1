"""One command-line option for every field of the sampler's settings and plan."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser

from lit_llada.sampling.plan import Plan, count_names
from lit_llada.sampling.rules import RULES
from lit_llada.sampling.settings import PLAIN, Settings, change_plan

PLAN_FIELDS = [field.name for field in fields(Plan)]


def add_options(parser: ArgumentParser) -> None:
    """One option for every field of the settings and the plan, absent from the result where it is not given."""
    _add_fields(parser, Settings, "what is asked for")
    _add_fields(parser, Plan, "how the canvas is filled; each overrides the preset")


def add_plan(parser: ArgumentParser) -> None:
    """One option for every field of the plan, absent from the result where it is not given."""
    _add_fields(parser, Plan, "how the answers are sampled")


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the parsed options that :func:`add_options` has added and somebody has given."""
    return {name: value for name, value in options.items() if name in (*PLAIN, *PLAN_FIELDS)}


def read_plan(options: dict[str, Any], plan: Plan = Plan()) -> Plan:  # noqa: B008  (frozen)
    """Take the options of :func:`add_plan` out of the parsed ones; blocks stop at the end of an answer, unless told."""
    changes = {name: options.pop(name) for name in PLAN_FIELDS if name in options}
    return change_plan(plan, **{"stop_at_eos": bool(changes.get("block_length")), **changes})


def _add_fields(parser: ArgumentParser, cls: type, group: str) -> None:
    options, hints = parser.add_argument_group(group), get_type_hints(cls)
    said = {entry.arg_name: entry.description for entry in docstring_parser.parse(cls.__doc__ or "").params}
    for field in fields(cls):
        if field.name == "plan":
            continue
        text, kind = (said[field.name] or "").replace("``", "").replace("\n", " "), hints[field.name]
        text = text.replace("None", "null")
        if cls is not Plan:
            text += f" (default: {field.default})"
        if field.name == "count":
            text, kind = _count_help(), Literal[count_names()]
        options.add_argument(f"--{field.name}", type=kind, default=SUPPRESS, help=text)


def _count_help() -> str:
    rules = "; ".join(f"{name}: {rule.says}" for name, rule in RULES.items())
    return f"how many go. quota: the published even share; {rules}. At least one always goes."
