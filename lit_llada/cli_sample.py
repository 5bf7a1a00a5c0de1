"""``sample``, ``chat`` and ``calibrate``: what can be typed after them, and what they are given to work with."""

from __future__ import annotations

import json
import os
import sys
from argparse import RawDescriptionHelpFormatter
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import DefaultHelpFormatter

from lit_llada.apps.settings import Settings, add_options, choose_plan, generation_path, given, read_generation
from lit_llada.cli_parser import Parser
from lit_llada.errors import UserError
from lit_llada.sampling.plan import PRESETS

if TYPE_CHECKING:
    from lit_llada.checkpoint.load import Checkpoint
    from lit_llada.data.chat import ChatTemplate

SAMPLE = """\
Continue prompts, answer messages, or fill gaps.

  lit-llada sample CHECKPOINT 'The capital of France is'
  lit-llada sample CHECKPOINT --chat 'What is 12 times 4?' --new_tokens 64
  lit-llada sample CHECKPOINT --infill 'def add(a, b):[...24]    return c'    a gap of 24 tokens; [...] has new_tokens
  lit-llada sample CHECKPOINT --infill '[...]' --temperature 1                 text from nothing
  lit-llada sample CHECKPOINT --file questions.jsonl --chat --batch_size 16 --out answers.jsonl
  lit-llada sample CHECKPOINT - < prompts.txt | jq .text                       one prompt a line; a pipe gets JSONL
  lit-llada sample CHECKPOINT 'Once' --film film.html --trace trace.jsonl

CHECKPOINT is a folder in the Hugging Face layout, org/name on the hub, or a .ckpt of a run. A .jsonl file has an object
a line with "prompt" or "messages". Options of the plan override the preset; without --preset the checkpoint's own plan
counts (lit-llada calibrate saves one), else fast. An answer is the same whatever shares its batch."""

CHAT = """\
Converse at a terminal, and watch the canvas being filled.

  lit-llada chat CHECKPOINT
  lit-llada chat CHECKPOINT --system 'Answer in one word.' --preset official --new_tokens 64
  lit-llada chat CHECKPOINT --template plain        a base model with the tokenizer of bytes
  printf 'Hello\\n/save talk.jsonl\\n' | lit-llada chat CHECKPOINT

Guesses are dim until they are committed. Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands."""

CALIBRATE = """\
Find the cheapest sampler that answers as well as one token a step, and save it with the checkpoint.

  lit-llada calibrate CHECKPOINT --data questions.jsonl --new_tokens 32
  lit-llada calibrate CHECKPOINT --data questions.jsonl --counts '[threshold,factor]' --tolerance 2
  lit-llada calibrate CHECKPOINT --data questions.jsonl --bounds '[0.6,0.7,0.8,0.9]' --chat

Every line of --data is {"prompt": ..., "answer": ...}; an answer is right if it is the same text, blanks around it left
out. A table is printed; a figure, the numbers (JSON) and the chosen plan are written beside the checkpoint, the plan
under the key "lit_llada" of its generation config: sample and chat take it from there."""


class Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Examples keep their lines."""


def sample(words: list[str]) -> int:
    """``lit-llada sample CHECKPOINT [PROMPT ...]``."""
    parser = _parser("sample", "[PROMPT ...]", SAMPLE)
    parser.add_argument("prompts", nargs="*", type=str, metavar="PROMPT", help="texts; - reads the standard input")
    parser.add_argument("--file", type=str | None, default=None, help="a file of prompts, a line each, or .jsonl")
    parser.add_argument("--chat", action="store_true", help="every prompt is a user's message")
    parser.add_argument("--infill", action="store_true", help="fill the gaps [...] or [...24]; write nothing behind")
    parser.add_argument("--batch_size", type=int, default=8, help="rows at once")
    parser.add_argument("--out", type=str | None, default=None, help="write JSONL to this file")
    parser.add_argument("--film", type=str | None, default=None, help="watch the answers come about: .html or .gif")
    parser.add_argument("--trace", type=str | None, default=None, help="write every step of every answer: JSONL")
    options = _options(parser, words)
    from lit_llada.apps.prompts import read_prompts

    if options["chat"] and options["infill"]:
        raise UserError("--chat and --infill exclude each other: an answer is written behind a message; leave one out")
    if options["batch_size"] < 1:
        raise UserError(f"--batch_size is {options['batch_size']}; it must be at least 1")
    prompts = read_prompts(options["prompts"], options["file"])
    checkpoint, settings = _load(options)
    from lit_llada.apps.sample import sample as run

    try:
        run(
            checkpoint,
            prompts,
            settings,
            template=_template(options, checkpoint) if options["chat"] else None,
            context=context_length(checkpoint),
            **{name: options[name] for name in ("infill", "batch_size", "out", "film", "trace")},
        )
    except BrokenPipeError:  # whoever read has had enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing is flushed into the pipe
    return 0


def chat(words: list[str]) -> int:
    """``lit-llada chat CHECKPOINT``."""
    parser = _parser("chat", "", CHAT)
    parser.add_argument("--system", type=str | None, default=None, help="the system's message")
    options = _options(parser, words)
    checkpoint, settings = _load(options)
    from lit_llada.apps.chat import Chat

    template = _template(options, checkpoint)
    Chat(checkpoint, template, settings, system=options["system"], context=context_length(checkpoint)).loop()
    return 0


def calibrate(words: list[str]) -> int:
    """``lit-llada calibrate CHECKPOINT --data FILE``."""
    rules = list[Literal["threshold", "factor", "frechet", "entropy_bound"]]
    parser = _parser("calibrate", "--data FILE", CALIBRATE)
    parser.add_argument("--data", type=str, required=True, metavar="FILE", help="JSONL with prompt and answer")
    parser.add_argument("--chat", action="store_true", help="every prompt is a user's message")
    parser.add_argument("--counts", type=rules, default=["threshold"], help="the rules to try")
    parser.add_argument("--bounds", type=list[float] | None, default=None, help="of the one rule (default: a range)")
    parser.add_argument("--tolerance", type=float, default=1.0, help="points of accuracy that speed may cost")
    parser.add_argument("--batch_size", type=int, default=8, help="rows at once")
    options = _options(parser, words)
    from lit_llada.apps.calibrate import calibrate as run
    from lit_llada.apps.calibrate import read_questions
    from lit_llada.checkpoint.load import locate

    questions = read_questions(options["data"])
    checkpoint, settings = _load(options)
    run(
        checkpoint,
        questions,
        settings,
        generation_path(locate(options["checkpoint"])),
        template=_template(options, checkpoint) if options["chat"] else None,
        context=context_length(checkpoint),
        **{name: options[name] for name in ("counts", "bounds", "tolerance", "batch_size")},
    )
    return 0


def context_length(checkpoint: Checkpoint) -> int | None:
    """The longest sequence that a published folder says it was made for; None where nothing does."""
    fields = json.loads(checkpoint.files.get("config.json", "{}"))
    return fields.get("max_sequence_length") or fields.get("max_position_embeddings")


def _parser(verb: str, rest: str, description: str) -> Parser:
    usage = f"lit-llada {verb} CHECKPOINT {rest} [options]"
    parser = Parser(prog=f"lit-llada {verb}", usage=usage, description=description, formatter_class=Help)
    parser.add_argument("checkpoint", type=str, metavar="CHECKPOINT", help="a folder, org/name on the hub, a .ckpt")
    names = ", ".join(PRESETS)
    parser.add_argument("--preset", type=str | None, default=None, help=f"of the plan: {names}")
    parser.add_argument("--template", type=str | None, default=None, help="llada, llada_moe, plain, or a path")
    parser.add_argument("--tokenizer", type=str | None, default=None, help="a tokenizer.json, where none is beside")
    parser.add_argument("--ema", type=bool | None, default=None, help="the averaged weights (default: if there are)")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, mps; auto takes what is there")
    kinds = Literal["float32", "bfloat16", "float16"] | None
    parser.add_argument("--dtype", type=kinds, default=None, help="of the weights (default: as they are stored)")
    return parser


def _options(parser: Parser, words: list[str]) -> dict[str, Any]:
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


def _load(options: dict[str, Any]) -> tuple[Checkpoint, Settings]:
    """The checkpoint with a tokenizer, and how it is asked."""
    choose_plan(options["preset"], {})  # a mistyped name is told before the weights are read
    from lit_llada.checkpoint.load import load_checkpoint

    path, device = options["checkpoint"], pick_device(options["device"])
    checkpoint = load_checkpoint(
        path, _dtype(options["dtype"]), device, ema=options["ema"], tokenizer=options["tokenizer"]
    )
    if checkpoint.tokenizer is None:
        raise UserError(f"{path} has no tokenizer beside it; give one with --tokenizer PATH")
    plan = choose_plan(options["preset"], read_generation(checkpoint, path))
    return checkpoint, Settings(plan).changed(**given(options))


def _template(options: dict[str, Any], checkpoint: Checkpoint) -> ChatTemplate:
    """The one asked for, or the checkpoint's, or the first that its tokenizer can write."""
    from lit_llada.data.chat import ChatTemplate
    from lit_llada.data.chat_choice import choose_template

    name, source, tokenizer = options["template"], checkpoint.chat_template, checkpoint.tokenizer
    assert tokenizer is not None, "_load has asked for one"
    if name is None and source is not None:
        bos = json.loads(checkpoint.files.get("tokenizer_config.json", "{}")).get("bos_token") or ""
        bos = bos if isinstance(bos, str) else bos["content"]
        return ChatTemplate(source, bos, tokenizer.eos, "the checkpoint's chat template")
    template = choose_template(name or "auto", tokenizer, None)
    if name is None:
        print(f"the checkpoint has no chat template; taking {template.name}", file=sys.stderr)
    return template


def pick_device(name: str) -> str:
    import torch

    from lit_llada.backbone.devices import require_driver

    if name == "auto":
        require_driver("--device cpu")
        found = torch.accelerator.current_accelerator(check_available=True)
        return "cpu" if found is None else found.type
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} is not here ({str(error).splitlines()[0]}); give another, or auto") from None
    return name


def _dtype(name: str | None) -> Any:
    import torch

    return None if name is None else getattr(torch, name)
