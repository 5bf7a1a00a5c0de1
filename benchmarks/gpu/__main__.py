"""Check and measure everything on one card, in a few minutes: one table, and a JSON file beside it.

First the tests of what a GPU computes, then training, sampling, preference optimisation and the framework. A part that
fails, or lacks a package, is reported and the rest goes on. The file is written after every line, so that a run that is
killed loses nothing. ``--small`` is a rehearsal: every line runs, on tiny nets and on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # nets of many sizes, one after the other

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu.framework import framework
from benchmarks.gpu.measure import Machine, OverBudget, Row, forget_compiled, why
from benchmarks.gpu.preference import lora, vrpo
from benchmarks.gpu.sampling import sampling
from benchmarks.gpu.training import dense, sparse

ROOT = Path(__file__).parents[2]
CHECKS = 80  # seconds


class Part(NamedTuple):
    """What to measure; what one part leaves of its seconds, the next ones may use."""

    title: str
    run: Callable[[Machine], Iterator[Row]]
    seconds: float


def checks(machine: Machine) -> Iterator[Row]:
    """The tests of what a GPU computes; in a rehearsal they are only collected, for the suite runs them itself."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]
    command += machine.pick(["-v", "-k", "cuda"], ["-q", "--collect-only"])  # the same tests on a CPU need no card
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=CHECKS - 5,
        )
        ended, text = f"exit code {done.returncode}" if done.returncode else "", done.stdout.decode()
    except subprocess.TimeoutExpired as error:
        ended, text = f"not done after {CHECKS - 5} s", (error.stdout or b"").decode()
    print(text[-4000:], file=sys.stderr)
    yield counted(text, ended)


def counted(text: str, ended: str) -> Row:
    """How pytest's tests came out, and which of them failed; ``ended`` says how pytest did, if not well."""
    found = re.findall(r"^(\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR)\b", text, re.MULTILINE)
    counts = {name.lower(): float(n) for name, n in Counter(name for _, name in found).items()}
    if collected := re.search(r"(\d+) tests collected", text):
        counts["tests"] = float(collected[1])
    bad = [test.rpartition("::")[2] for test, name in found if name in ("FAILED", "ERROR")]
    last = text.strip().rpartition("\n")[2]
    summary = written(counts)
    instead = f"failed: {ended}: {summary}; {(', '.join(bad) or last)[:300]}" if ended or bad else ""
    return Row("pytest -m gpu", counts, instead=instead)


PARTS = {
    "checks": Part("checks", checks, CHECKS),
    "dense": Part("LLaDA-1B, a training step", dense, 85),
    "sparse": Part("LLaDA-MoE's layers, a training step", sparse, 45),
    "sampling": Part("LLaDA-8B, sampling", sampling, 45),
    "vrpo": Part("VRPO at 1B, n = 8", vrpo, 20),
    "lora": Part("LLaDA-8B, adapters", lora, 40),
    "framework": Part("Lightning, data, callbacks", framework, 45),
}


def facts(device: torch.device, small: bool, argv: list[str]) -> dict[str, Any]:
    """What the figures belong to: the card, the versions, the command and the date."""
    cuda = device.type == "cuda"
    return {
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "small": small,
        "card": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "driver": driver() if cuda else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **{name: version(name) for name in ("triton", "flash-attn", "lightning", "litdata", "peft")},
    }


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """The version of the GPU's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split("\n")[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        return None


def peak_of(device: torch.device) -> float | None:
    """The data sheet's dense bfloat16 FLOP/s; None for a card that is not in the table, or without lightning."""
    if device.type == "cpu":
        return 1e12  # stands in, so that a rehearsal runs every line
    with contextlib.suppress(ModuleNotFoundError):
        from lit_llada.callbacks.throughput import known_peak

        return known_peak(device)
    return None


def run_part(part: Part, machine: Machine, seconds: float, keep: Callable[[Row], None]) -> str:
    """Hand every row of a part to ``keep`` as soon as it is there; what stopped the part, if anything did."""

    def stop(*_: object) -> None:
        raise OverBudget

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        for row in part.run(machine):
            keep(row)
    except OverBudget:
        return f"stopped after {seconds:.0f} s, its share of the time"
    except ModuleNotFoundError as error:
        return f"skipped: needs {error.name or error}"
    except Exception as error:
        return f"failed: {why(error)}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        forget_compiled()
    return ""


def run_all(parts: dict[str, Part], machine: Machine, report: dict[str, Any], out: Path) -> None:
    """Every part in turn, each row written to ``out`` at once."""
    begin, allowed = time.perf_counter(), 0.0  # what is allowed is for all parts so far
    out.parent.mkdir(parents=True, exist_ok=True)
    report["parts"] = []
    for name, part in parts.items():
        print(f"== {part.title}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        allowed += machine.pick(1, 20) * part.seconds
        rows: list[dict[str, Any]] = []
        entry: dict[str, Any] = {"part": name, "title": part.title, "rows": rows, "stopped": "not done yet"}
        report["parts"].append(entry)

        def keep(row: Row, rows: list[dict[str, Any]] = rows) -> None:
            rows.append(row._asdict())
            print(f"   {row.case}: {row.instead or written(row.figures)} {row.goal}", file=sys.stderr, flush=True)
            write(report, out)

        entry["stopped"] = run_part(part, machine, allowed - (began - begin), keep)
        entry["seconds"] = time.perf_counter() - began
        write(report, out)


def write(report: dict[str, Any], out: Path) -> None:
    """Whole or not at all."""
    part = out.with_name(f"{out.name}.part")
    part.write_text(json.dumps(report, indent=1))
    part.replace(out)


def written(figures: dict[str, float]) -> str:
    """Figures in one line; shares in percent."""

    def number(name: str, value: float) -> str:
        if name == "of peak":
            return f"{value:.1%}"
        return f"{value:,.0f}" if value >= 1000 or float(value).is_integer() else f"{value:.3g}"

    return ", ".join(f"{name} {number(name, value)}" for name, value in figures.items())


def show(report: dict[str, Any]) -> None:
    """The table."""
    about = ", ".join(f"{name} {report[name]}" for name in ("driver", "torch", "cuda", "triton", "flash-attn", "date"))
    title = f"{report['card']}: {about}"
    out = Table(title="A rehearsal: these figures mean nothing. " * report["small"] + title, title_justify="left")
    for column in ("", "figures", "goal"):
        out.add_column(column, overflow="fold")
    for part in report["parts"]:
        for row in part["rows"]:
            out.add_row(row["case"], row["instead"] or written(row["figures"]), row["goal"])
        out.add_row(f"{part['title']}: {part['seconds']:.0f} s", part["stopped"], "", style="bold", end_section=True)
    Console(width=160).print(out)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run it; returns the report that the file holds."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--small", action="store_true", help="a rehearsal with tiny nets; on a CPU, unless --device cuda"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default cuda, with --small cpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"), help="the JSON file (default runs/gpu.json)")
    args = parser.parse_args(argv)
    device = torch.device(args.device or ("cpu" if args.small else "cuda"), 0)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device that this torch can use; --small rehearses on a CPU")
    if device.type == "cpu" and not args.small:
        parser.error("--device cpu goes with --small only")
    torch.manual_seed(1)
    report = facts(device, args.small, argv)
    machine = Machine(device, args.small, peak_of(device))
    report["peak_flops"] = machine.peak
    chosen = {name: part for name, part in PARTS.items() if args.only is None or name in args.only}
    # A rehearsal asks for compilation as the real run does, but does not wait minutes for a compiler.
    with torch.compiler.set_stance("force_eager" if args.small else "default"):
        run_all(chosen, machine, report, args.out)
    show(report)
    print(args.out)
    return report


if __name__ == "__main__":
    main()
