"""``evaluate`` and ``prepare preference --from``: what can be typed after them."""

from __future__ import annotations

from lit_llada.cli_parser import Parser
from lit_llada.cli_sample import pick_device

EVALUATE = """\
Exact match of each template on the validation questions of a folder of `prepare chat`.

  lit-llada evaluate runs/sft/checkpoints/step=0002000.ckpt --data data/repl
  lit-llada evaluate SFT.ckpt --data data/repl --per_template 100 --compare VRPO.ckpt NAIVE.ckpt --out table.json

Every share stands with Wilson's 95 % interval, every difference with a paired one."""

DRAWN = """\
Preference pairs drawn from a model: right answers, and the wrong ones that it gave itself.

  lit-llada prepare preference --from SFT.ckpt --data data/repl --out data/repl_pairs --size 2000 --samples 4"""


def evaluate(words: list[str]) -> int:
    """``lit-llada evaluate CHECKPOINT --data DIR``."""
    from lit_llada.apps.evaluate import evaluate as run
    from lit_llada.cli_sample import Help

    parser = Parser(prog="lit-llada evaluate", description=EVALUATE, formatter_class=Help)
    parser.add_argument("checkpoint", type=str, metavar="CHECKPOINT", help="a folder, org/name on the hub, a .ckpt")
    parser.add_argument("--compare", nargs="+", type=str, default=[], metavar="OTHER", help="more checkpoints")
    parser.add_function_arguments(run, skip={"checkpoint", "compare"}, fail_untyped=False)
    options = parser.parse_args(words).as_dict()
    run(**options | {"device": pick_device(options["device"])})
    return 0


def prepare_drawn(words: list[str]) -> int:
    """``lit-llada prepare preference --from CHECKPOINT --data DIR --out DIR``."""
    from lit_llada.cli_sample import Help
    from lit_llada.data.drawn import prepare_drawn as run

    parser = Parser(prog="lit-llada prepare preference", description=DRAWN, formatter_class=Help)
    parser.add_argument("--from", type=str, metavar="CHECKPOINT", help="a folder, org/name on the hub, a .ckpt")
    parser.add_function_arguments(run, skip={"checkpoint"}, fail_untyped=False)
    options = parser.parse_args(words).as_dict()
    run(options.pop("from"), **options | {"device": pick_device(options["device"])})
    return 0
