"""``lit-llada calibrate``: find the cheapest sampler that is good enough, and save it with the checkpoint."""

from __future__ import annotations

from typing import Any, Literal

from lit_llada.checkpoint.generation import generation_path, save_plan
from lit_llada.cli.checkpoint_options import checkpoint_parser, load, read_options, template_for
from lit_llada.sampling.rules import RULES

CALIBRATE = """\
Find the cheapest sampler that answers as well as one token a step, and save it with the checkpoint.

  lit-llada calibrate CHECKPOINT --data questions.jsonl --new_tokens 32
  lit-llada calibrate CHECKPOINT --data questions.jsonl --counts '[threshold,factor]' --tolerance 2
  lit-llada calibrate CHECKPOINT --data questions.jsonl --bounds '[0.6,0.7,0.8,0.9]' --chat

Every line of --data is {"prompt": ..., "answer": ...}; an answer is right if it is the same text, blanks around it left
out. A table is printed; a figure, the numbers (JSON) and the chosen plan are written beside the checkpoint, the plan
under the key "lit_llada" of its generation config: sample and chat take it from there."""


def calibrate(words: list[str]) -> int:
    """``lit-llada calibrate CHECKPOINT --data FILE``."""
    rules: Any = list[Literal[tuple(RULES)]]  # type: ignore[misc]
    parser = checkpoint_parser("calibrate", "--data FILE", CALIBRATE)
    parser.add_argument("--data", type=str, required=True, metavar="FILE", help="JSONL with prompt and answer")
    parser.add_argument("--chat", action="store_true", help="every prompt is a user's message")
    parser.add_argument("--counts", type=rules, default=["threshold"], help="the rules to try")
    parser.add_argument(
        "--bounds", type=list[float] | None, default=None, help="bounds of the one rule (default: a range)"
    )
    parser.add_argument("--tolerance", type=float, default=1.0, help="points of accuracy that speed may cost")
    parser.add_argument("--batch_size", type=int, default=8, help="rows at once")
    options = read_options(parser, words)
    from lit_llada.checkpoint.load import fetch_checkpoint
    from lit_llada.cli.calibration_report import show, write_results
    from lit_llada.evaluation.calibration import read_known_answers, sweep

    questions = read_known_answers(options["data"])
    checkpoint, settings = load(options)
    template = template_for(options, checkpoint) if options["chat"] else None
    how = {name: options[name] for name in ("counts", "bounds", "tolerance", "batch_size")}
    found = sweep(checkpoint, questions, settings, template, **how)
    generation = generation_path(fetch_checkpoint(options["checkpoint"]))
    save_plan(generation, vars(found.plan))
    show(found)
    write_results(generation, found)
    return 0
