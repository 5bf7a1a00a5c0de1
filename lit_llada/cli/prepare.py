"""``lit-llada prepare``: text, conversations or preference pairs -> a prepared folder; ``--check`` verifies one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from lit_llada.errors import UserError

USAGE = "lit-llada prepare text INPUT ... --out DIR (or --corpus prose), or lit-llada prepare --check DIR"

PREPARERS = {
    "text": ("lit_llada.prepare.documents:prepare_text", "Text and code to tokenizer, chunks and manifest."),
    "chat": ("lit_llada.prepare.conversations:prepare_chat", "Questions with answers, for fine-tuning."),
    "preference": ("lit_llada.prepare.conversations:prepare_preference", "Pairs of answers, better and worse."),
}

OWN_MISTAKES = """\
Preference pairs drawn from a model: right answers, and the wrong ones that it gave itself.

  lit-llada prepare preference --from SFT.ckpt --data data/repl --out data/repl_pairs --size 2000 --samples 4"""


def prepare(words: list[str]) -> int:
    """``prepare text | chat | preference INPUT ... --out DIR`` or ``prepare --check DIR``."""
    if words[:1] == ["--check"]:
        return _check(words[1:])
    if words[:1] in (["-h"], ["--help"]):
        print(
            f"usage: {USAGE}\n\nInstead of text say chat or preference; each lists its options with --help."
            "\nprepare preference --from CHECKPOINT draws the pairs from a model, and has a --help too."
        )
        return 0
    if not words:
        raise UserError(f"usage: {USAGE}")
    if words[0] == "preference" and any(word.partition("=")[0] == "--from" for word in words):
        return _own_mistakes(words[1:])
    if words[0] not in PREPARERS:
        raise UserError(f"prepare: {words[0]!r} is not a kind of data, as {', '.join(PREPARERS)} are; {USAGE}")
    from lit_llada.cli.parser import Parser

    kind, (place, description) = words[0], PREPARERS[words[0]]
    module, name = place.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    parser = Parser(prog=f"lit-llada prepare {kind}", description=description)
    parser.add_argument("inputs", nargs="*", type=str, help="files and folders")
    parser.add_function_arguments(function, skip={"inputs"}, fail_untyped=False)
    options = parser.parse_args(words[1:]).as_dict()
    if options["inputs"] and not any(word.partition("=")[0] == "--out" for word in words):
        raise UserError(f"prepare {kind}: say where to with --out DIR, e.g. --out data/{kind}")
    function(**options)
    return 0


def _check(words: list[str]) -> int:
    if len(words) != 1:
        raise UserError(f"prepare --check takes one folder: {USAGE}")
    from lit_llada.prepare.documents import check_prepared

    check_prepared(words[0])
    print(f"{words[0]}: complete, every hash as in its manifest")
    return 0


def _own_mistakes(words: list[str]) -> int:
    """``lit-llada prepare preference --from CHECKPOINT --data DIR --out DIR``."""
    from lit_llada.cli.checkpoint_options import Help
    from lit_llada.cli.options import add_plan, read_plan
    from lit_llada.cli.parser import Parser
    from lit_llada.prepare.own_mistakes import PLAN, prepare_own_mistakes

    parser = Parser(prog="lit-llada prepare preference", description=OWN_MISTAKES, formatter_class=Help)
    parser.add_argument("--from", type=str, metavar="CHECKPOINT", help="a folder, org/name on the hub, a .ckpt")
    parser.add_function_arguments(prepare_own_mistakes, skip={"checkpoint", "plan"}, fail_untyped=False)
    add_plan(parser)
    options = parser.parse_args(words).as_dict()
    plan = read_plan(options, PLAN)
    prepare_own_mistakes(options.pop("from"), plan=plan, **options)
    return 0
