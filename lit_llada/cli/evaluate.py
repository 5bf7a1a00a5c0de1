"""``lit-llada evaluate``: exact match by task, checkpoints compared question by question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lit_llada.cli.checkpoint_options import Help
from lit_llada.cli.options import add_plan, read_plan
from lit_llada.cli.parser import Parser
from lit_llada.files import require_folder, writing

if TYPE_CHECKING:
    from lit_llada.evaluation.comparison import Comparison

EVALUATE = """\
Exact match of each task on the validation questions of a folder of `prepare chat`.

  lit-llada evaluate runs/sft/checkpoints/step=0002000.ckpt --data data/repl
  lit-llada evaluate SFT.ckpt --data data/repl --per_task 100 --compare VRPO.ckpt NAIVE.ckpt --out table.json

Every share stands with Wilson's 95 % interval, every difference with a paired one."""


def evaluate(words: list[str]) -> int:
    """``lit-llada evaluate CHECKPOINT --data DIR``."""
    from lit_llada.evaluation.comparison import evaluate as run

    parser = Parser(prog="lit-llada evaluate", description=EVALUATE, formatter_class=Help)
    parser.add_argument("checkpoint", type=str, metavar="CHECKPOINT", help="a folder, org/name on the hub, a .ckpt")
    parser.add_argument("--compare", nargs="+", type=str, default=[], metavar="OTHER", help="more checkpoints")
    parser.add_argument("--out", type=str | None, default=None, help="write the numbers to this file, as JSON")
    parser.add_function_arguments(run, skip={"checkpoints", "plan"}, fail_untyped=False)
    add_plan(parser)
    options = parser.parse_args(words).as_dict()
    plan, out = read_plan(options), options.pop("out")
    require_folder(out)
    found = run([options.pop("checkpoint"), *options.pop("compare")], plan=plan, **options)
    show(found)
    if out is not None:
        with writing(Path(out)) as file:
            file.write(json.dumps(found.numbers(), indent=2) + "\n")
    return 0


def show(found: Comparison) -> None:
    """The table, and below it the paths and those differences that have no column."""
    from lit_llada.evaluation.comparison import ALL, change

    console = Console(soft_wrap=True, highlight=False)
    table = found.table()
    # A terminal narrower than the table breaks its lines; cells cut short would be worse.
    free = console.options.update(max_width=1000)
    Console(width=max(console.width, console.measure(table, options=free).maximum), highlight=False).print(table)
    for letter, one in zip(found.letters, found.answered, strict=True):
        console.print(f"{letter}  {one.path}", markup=False)
    for name, difference in found.lettered_differences()[1]:
        console.print(f"{name}, all questions: {change(**difference[ALL])}")
    if len(found.answered) > 1:
        console.print("* the interval of the difference (in points, question by question) does not hold 0")
