"""The benchmark for a card, rehearsed: every line of it runs here, and whatever goes wrong in a part stays there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"lightning", "litdata", "jsonargparse", "peft"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import importlib, pkgutil
import lit_llada
for layer in ("backbone", "objectives", "sampling"):
    folder = importlib.import_module(f"lit_llada.{layer}")
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"lit_llada.{layer}.{module.name}")
from benchmarks.gpu.__main__ import main
main(["--small", "--only", "sparse", "vrpo", "lora", "framework", "--out", sys.argv[1]])
"""


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])  # the benchmarks are not installed


def test_a_rehearsal_has_a_figure_or_a_reason_in_every_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.gpu.__main__ import PARTS, main

    out = tmp_path / "new" / "gpu.json"
    report = main(["--small", "--out", str(out)])
    assert json.loads(out.read_text()) == report and str(out) in capsys.readouterr().out
    parts = {part["part"]: part for part in report["parts"]}
    assert list(parts) == list(PARTS) and report["small"] and report["torch"] == torch.__version__
    for part in report["parts"]:
        assert part["rows"] and part["stopped"] == ""
        for row in part["rows"]:
            assert row["figures"] or may_be_missing(row), row
            assert not row["figures"] or all(value > 0 for value in row["figures"].values() if value), row
    assert len(parts["dense"]["rows"]) == 11 and len(parts["sampling"]["rows"]) == 10
    rows = {row["case"]: row["figures"] for part in report["parts"] for row in part["rows"]}
    assert rows["1 x (4 + 8), ours, one token a step"]["share of tokens as published"] == 1
    assert rows["1 x (4 + 8), ours, one token a step"]["tokens a step"] == 1
    assert {"ms", "tokens/s", "of peak", "times plain's tokens/s"} <= set(rows["ours, compiled"])
    assert {"of peak", "blocks over dense"} <= set(rows["compiled"])
    assert rows["pytest -m gpu"]["tests"] > 100  # found, that is


def may_be_missing(row: dict[str, Any]) -> bool:
    """What a CPU cannot do: the attention of other hardware."""
    return row["instead"].startswith("refused: attention backend") and row["case"].endswith(("flash", "varlen"))


def test_without_the_packages_that_an_image_may_lack_parts_say_so(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", BLOCKED, str(out)], cwd=ROOT, env=environment, check=True)
    stopped = {part["part"]: part["stopped"] for part in json.loads(out.read_text())["parts"]}
    assert stopped == {
        "sparse": "",
        "vrpo": "",
        "lora": "skipped: needs peft",
        "framework": "skipped: needs litdata",
    }


def test_a_part_that_fails_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    from benchmarks.gpu.__main__ import Part, run_all, show
    from benchmarks.gpu.measure import Machine, Row, attempt
    from lit_llada.errors import UserError

    def raise_(error: Exception) -> Any:
        raise error

    def works(machine: Machine) -> Iterator[Row]:
        yield Row("first", {"ms": 1.0})

    def breaks(machine: Machine) -> Iterator[Row]:
        yield Row("before", {"ms": 2.0})
        yield attempt("out of memory", lambda: raise_(torch.OutOfMemoryError("CUDA out of memory")))
        yield attempt("refused", lambda: raise_(UserError("attention backend 'flash' needs a GPU")))
        yield Row("after", {"ms": 3.0})
        raise RuntimeError("no such kernel")

    def never_ends(machine: Machine) -> Iterator[Row]:
        yield Row("in time", {"ms": 4.0})
        yield attempt("too late", lambda: signal.raise_signal(signal.SIGALRM))  # type: ignore[arg-type, return-value]
        yield Row("never", {})

    parts = {run.__name__: Part(run.__name__, run, 1000) for run in (breaks, never_ends, works)}
    report: dict[str, Any] = dict.fromkeys(("card", "driver", "torch", "cuda", "triton", "flash-attn", "date"))
    report["small"] = True
    out = tmp_path / "gpu.json"
    run_all(parts, Machine(torch.device("cpu"), True, None), report, out)
    show(report)
    broken, late, fine = json.loads(out.read_text())["parts"]
    assert [row["case"] for row in broken["rows"]] == ["before", "out of memory", "refused", "after"]
    assert broken["rows"][1]["instead"].startswith("failed: OutOfMemoryError: CUDA out of memory (test_gpu.py:")
    assert broken["rows"][2]["instead"] == "refused: attention backend 'flash' needs a GPU"
    assert broken["stopped"].startswith("failed: RuntimeError: no such kernel")
    assert [row["case"] for row in late["rows"]] == ["in time"] and late["stopped"].startswith("stopped after")
    assert fine["rows"][0]["figures"] == {"ms": 1.0} and fine["stopped"] == ""
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_the_tests_of_a_card_are_counted_also_when_time_ran_out() -> None:
    from benchmarks.gpu.__main__ import counted

    lines = "tests/gpu/test_a.py::test_x[cuda-f d] PASSED [ 10%]\ntests/gpu/test_a.py::test_y[cuda] FAILED [ 20%]\n"
    passed = counted(lines.splitlines()[0], "")
    assert (passed.figures, passed.instead) == ({"passed": 1}, "")
    row = counted(lines, "not done after 75 s")
    assert row.figures == {"passed": 1, "failed": 1}
    assert row.instead == "failed: not done after 75 s: passed 1, failed 1; test_y[cuda]"
    row = counted("ERROR: file or directory not found: tests/gpu", "exit code 4")
    assert row.instead == "failed: exit code 4: ; ERROR: file or directory not found: tests/gpu"


def test_the_largest_size_that_fits_is_taken() -> None:
    from benchmarks.gpu.measure import largest

    def run(size: int) -> str:
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert largest((8, 4, 2, 1), run) == (2, "done")
    with pytest.raises(MemoryError, match="at every size of 8, 4"):
        largest((8, 4), run)
    with pytest.raises(RuntimeError, match="no kernel image"):
        largest((8, 4), lambda size: (_ for _ in ()).throw(RuntimeError("no kernel image")))


def test_sparse_layers_are_counted_from_bytes() -> None:
    from benchmarks.gpu.training import layers_that_fit
    from lit_llada.backbone.config import SIZES

    config, card = SIZES["moe_7b_a1b"], 85 * 10**9
    layers = layers_that_fit(config, 4 * 4096, card)
    assert 3 <= layers <= 6  # weights, gradients and moments alone: 16 bytes of 420 M parameters a layer
    assert layers_that_fit(config, 8 * 4096, card) < layers < layers_that_fit(config, 4 * 4096, 2 * card)
    assert layers_that_fit(config, 4 * 4096, 10**9) == 1


def test_a_machine_without_a_card_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.gpu.__main__ import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for argv, said in ([], "there is no CUDA device"), (["--device", "cpu"], "goes with --small only"):
        with pytest.raises(SystemExit):
            main(argv)
        assert said in capsys.readouterr().err


def test_the_plain_net_agrees_with_ours_with_grouped_queries() -> None:
    from benchmarks.gpu.measure import Machine, shrunk
    from benchmarks.plain import PlainTransformer
    from lit_llada.backbone.transformer import Backbone

    machine = Machine(torch.device("cpu"), True, None)
    config = machine.config("1b")
    assert config.kv_heads < config.n_heads and config == shrunk(config)
    net = Backbone(config)
    tokens = torch.randint(config.vocabulary, (2, 16))
    torch.testing.assert_close(PlainTransformer(config).copy_from(net)(tokens), net(tokens))


def test_the_card_measures_the_papers_nets() -> None:
    from benchmarks.gpu.measure import Machine
    from lit_llada.backbone.config import SIZES

    machine = Machine(torch.device("cpu"), False, None)
    assert all(machine.config(name) == SIZES[name] for name in ("1b", "8b", "moe_7b_a1b", "336m"))
    assert [machine.config(name).parameter_count() for name in ("1b", "8b")] == [1_487_243_264, 8_015_581_184]
