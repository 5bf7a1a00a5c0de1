"""Options of the commands that ask a checkpoint, and the checkpoint that these options name."""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import DefaultHelpFormatter

from lit_llada.checkpoint.generation import read_generation
from lit_llada.cli.options import add_options, given
from lit_llada.cli.parser import Parser
from lit_llada.errors import UserError
from lit_llada.sampling.plan import PRESETS
from lit_llada.sampling.settings import Settings, choose_plan

if TYPE_CHECKING:
    from lit_llada.checkpoint.load import Checkpoint
    from lit_llada.text.chat_template import ChatTemplate


class Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Examples keep their lines."""


def checkpoint_parser(verb: str, rest: str, description: str) -> Parser:
    """A parser for ``lit-llada VERB CHECKPOINT REST``."""
    usage = f"lit-llada {verb} CHECKPOINT {rest} [options]"
    parser = Parser(prog=f"lit-llada {verb}", usage=usage, description=description, formatter_class=Help)
    parser.add_argument("checkpoint", type=str, metavar="CHECKPOINT", help="a folder, org/name on the hub, a .ckpt")
    names = ", ".join(PRESETS)
    parser.add_argument("--preset", type=str | None, default=None, help=f"preset of the plan: {names}")
    parser.add_argument("--template", type=str | None, default=None, help="llada, llada_moe, plain, or a path")
    parser.add_argument("--tokenizer", type=str | None, default=None, help="a tokenizer.json, where none is beside")
    parser.add_argument("--ema", type=bool | None, default=None, help="the averaged weights (default: if there are)")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, mps; auto takes what is there")
    kinds = Literal["float32", "bfloat16", "float16"] | None
    parser.add_argument(
        "--dtype", type=kinds, default=None, help="number type of the weights (default: as they are stored)"
    )
    return parser


def read_options(parser: Parser, words: list[str]) -> dict[str, Any]:
    """The options of a command line, those of settings and plan only where they are given."""
    add_options(parser)
    return parser.parse_args(options_first(parser, words)).as_dict()


def options_first(parser: Parser, words: list[str]) -> list[str]:
    """The same words, those that belong to no option last: argparse takes only one run of them for positionals."""
    alone = {name for action in parser._actions if action.nargs == 0 for name in action.option_strings}
    rest = iter(words)
    options: list[str] = []
    others: list[str] = []
    for word in rest:
        if word == "--":
            others += rest
        elif word.startswith("-") and word != "-":
            options += [word] if word in alone or "=" in word else [word, *islice(rest, 1)]
        else:
            others.append(word)
    return [*options, "--", *others] if others else options


def load(options: dict[str, Any]) -> tuple[Checkpoint, Settings]:
    """The checkpoint with a tokenizer, and how it is asked."""
    choose_plan(options["preset"], {})  # a mistyped name is told before the weights are read
    from lit_llada.backbone.devices import pick_device
    from lit_llada.checkpoint.load import load_checkpoint

    path, device = options["checkpoint"], pick_device(options["device"])
    checkpoint = load_checkpoint(
        path, _dtype(options["dtype"]), device, ema=options["ema"], tokenizer=options["tokenizer"]
    )
    if checkpoint.tokenizer is None:
        raise UserError(f"{path} has no tokenizer beside it; give one with --tokenizer PATH")
    plan = choose_plan(options["preset"], read_generation(checkpoint))
    return checkpoint, Settings(plan).changed(**given(options))


def template_for(options: dict[str, Any], checkpoint: Checkpoint) -> ChatTemplate:
    """The template asked for, or the checkpoint's, or the first that its tokenizer can write; this is then said."""
    from lit_llada.sampling.prompts import template_of

    template = template_of(checkpoint, options["template"])
    if options["template"] is None and checkpoint.chat_template is None:
        print(f"the checkpoint has no chat template; taking {template.name}", file=sys.stderr)
    return template


def _dtype(name: str | None) -> Any:
    import torch

    return None if name is None else getattr(torch, name)
