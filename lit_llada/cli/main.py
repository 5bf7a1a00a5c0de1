"""``lit-llada VERB ...``: the first word picks a function; a user's mistake is one line and status 2.

Nothing heavy is imported here: ``--help`` and a mistyped verb answer at once.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from lit_llada.errors import UserError

# verb -> (module of this folder and its function of the remaining words, what it does)
VERBS = {
    "fit": ("training:fit", "train; the same command again resumes where it stopped"),
    "validate": ("training:validate", "the validation bound of a run's newest checkpoint"),
    "test": ("training:test", "the same over the test split"),
    "reference": ("training:reference", "VRPO: what the reference says of every pair, once, into a file"),
    "sample": ("sample:sample", "continue prompts, answer messages, fill gaps"),
    "chat": ("chat:chat", "converse at a terminal, the canvas in sight"),
    "calibrate": ("calibrate:calibrate", "the cheapest sampler that answers as well; saved with the checkpoint"),
    "evaluate": ("evaluate:evaluate", "exact match by task, checkpoints compared question by question"),
    "prepare": ("prepare:prepare", "text, chat or preference -> a folder to train on; --check verifies one"),
    "consolidate": ("convert:consolidate", "a sharded checkpoint folder -> one file that any strategy loads"),
    "convert": ("convert:convert", "published folders -> a start for training, and back; dense to sparse"),
}

HELP = """\
lit-llada: train and study masked diffusion language models

usage: lit-llada VERB ...        (lit-llada VERB --help tells more)

{verbs}

  lit-llada prepare text --corpus prose --out data/stdlib
  lit-llada fit -c configs/recipe/demo.yaml -c configs/data/stdlib.yaml -c configs/model/demo.yaml
  lit-llada fit -c configs/recipe/demo.yaml -c configs/data/stdlib.yaml -c configs/model/moe_demo.yaml --model.lr 3e-4
  lit-llada sample runs/demo-stdlib-demo/checkpoints/step=0001000.ckpt 'def ' --film film.html
  lit-llada chat org/name

Overlays (-c) add up, the later one wins, and what stands on the command line wins over all.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 2 after a user's mistake, 130 after Ctrl-C, 143 after SIGTERM."""
    # Before torch is loaded: threads that spin while they wait make a CPU run 15 times slower beside one busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {verb:<12} {text}" for verb, (_, text) in VERBS.items())))
        return 0 if words else 2
    if words[0] == "--version":
        from lit_llada.version import __version__

        print(f"lit-llada {__version__}")
        return 0
    if words[0] not in VERBS:
        close = difflib.get_close_matches(words[0], VERBS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(VERBS)}"
        return _fail(f"unknown verb {words[0]!r}; {hint}")
    return run(_function(VERBS[words[0]][0]), words[1:])


def run(command: Callable[[list[str]], int | None], words: list[str]) -> int:
    """Call ``command`` and turn what a user can mend into one line. Everything else keeps its traceback."""
    try:
        return command(words) or 0
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's own way out of Ctrl-C
            return 130
        raise
    except Exception as error:
        line = _explained(error, command.__name__)
        if line is None:
            raise
        return _fail(line)


def _function(where: str) -> Callable[..., int | None]:
    module, name = where.split(":")
    function: Callable[..., int | None] = getattr(importlib.import_module(f"lit_llada.cli.{module}"), name)
    return function


def _fail(line: str) -> int:
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return 2


def _explained(error: Exception, verb: str) -> str | None:
    """One line for an unexpected exception that a user can mend; None for all others."""
    from lit_llada.cli.memory import SMALLER, asked_for
    from lit_llada.cli.parser import causes

    if type(error).__name__ == "MisconfigurationException":  # Lightning's word for a wrong option
        return str(error)
    if isinstance(error, OSError) and error.filename and error.strerror and error.errno != errno.ENOSPC:
        return f"{error.filename}: {error.strerror}"
    smaller = getattr(error, "smaller", SMALLER.get(verb))  # left by cli.training
    for cause in causes(error):
        if smaller and (wanted := asked_for(cause)):
            return f"out of memory: {wanted} asked for; it is less with {', '.join(smaller[:-1])} or {smaller[-1]}"
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = f" while writing {cause.filename}" if cause.filename else ""
            good = getattr(error, "last_good", None)  # left by cli.training
            kept = f"the last whole checkpoint is {good}" if good else "no checkpoint was complete yet"
            return f"no space left on the disk{where}; {kept}. Free some space and run the same command again"
        if isinstance(cause, RuntimeError) and str(cause).startswith("Error(s) in loading state_dict"):
            if '"ema.' in str(cause):
                return "the checkpoint and this run differ in ema.enabled: set it as the run's config.yaml has it"
            return f"the checkpoint does not fit this model: {' '.join(str(cause).split()[:40])} ..."
    return None
