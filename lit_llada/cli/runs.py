"""The directory of a run, the checkpoint that it goes on from, and the report when it ends.

A run is a directory: ``config.yaml``, TensorBoard's events, ``run_card.json`` and ``checkpoints/``.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_llada.callbacks.samples import SampleLogger
from lit_llada.callbacks.step_checkpoint import checkpoints
from lit_llada.errors import UserError

# Options that say how to run, not what: they do not make another run, and a run may be resumed with others.
_HOW = (
    "trainer.",
    "checkpoint.",
    "throughput.",
    "progress.",
    "data.num_workers",
    "ckpt_path",
    "run_dir",
    "print_config",
    "out",
)
# Options that change nothing in a run, and which older versions may not have.
_NOT_OF_RUN = ("ckpt_path", "progress.")

# Options of version 0.1.0 -> their names today.
RENAMED = {"exact_match.per_template": "exact_match.per_task"}


def default_run_dir(words: list[str]) -> str:
    """``runs/`` and the names of the overlays and of the options changed on the command line.

    So the same command finds its own run again, and another command never goes on in it.
    """
    stems, changes = [], []
    for option, value in _options(words):
        if option in ("-c", "--config"):
            stems.append(Path(value).stem)
        elif option.startswith("--") and not option[2:].startswith(_HOW):
            changes.append(f"{option[2:]}={value}")
    name = "-".join(stems) or "run"
    if changes:
        said = re.sub(r"[^\w.,=+-]+", "_", ",".join(changes))
        exact = hashlib.sha256(repr(changes).encode()).hexdigest()[:8]
        name += f",{said}" if len(said) < 80 else f",{said[:60]}~{exact}"
    return f"runs/{name}"


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    """(option, value) of ``--key value`` and ``--key=value``."""
    for i, word in enumerate(words):
        if word.startswith("-") and not re.match(r"-[\d.]", word):
            option, equals, value = word.partition("=")
            option = option.replace(".init_args.", ".")
            yield option, value if equals else " ".join(words[i + 1 : i + 2])


def find_checkpoint(wish: str | None, run_dir: str, *, training: bool) -> Path | None:
    """The checkpoint to load.

    Args:
        wish: ``auto`` for the run's newest one, ``none`` for none, or a path.
        run_dir: the run's directory.
        training: a new run (``none``) must not be mixed with an old one; validation without any is refused.

    Raises:
        UserError: it is not there, or would be overwritten.
    """
    folder = Path(run_dir) / "checkpoints"
    whole = checkpoints(folder)
    if wish in (None, "none"):
        if training and whole:
            raise UserError(
                f"ckpt_path is none, but {folder} holds {whole[-1].name}: give another --run_dir, remove that folder, "
                "or leave ckpt_path at auto to go on from it"
            )
        return None
    if wish == "auto":
        if not whole and not training:
            raise UserError(f"no checkpoint in {folder}: give the run's --run_dir, or --ckpt_path PATH")
        return whole[-1] if whole else None
    if not Path(str(wish)).exists():
        raise UserError(f"ckpt_path {wish} does not exist; auto takes the newest of the run, none starts anew")
    return Path(str(wish))


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys, without jsonargparse's ``init_args``."""
    if not isinstance(config, dict) or not config:
        return {prefix: _class_name(config) if prefix.endswith("class_path") else config}
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= flat(value, prefix if key == "init_args" else f"{prefix}.{key}".strip("."))
    return leaves


def _class_name(path: Any) -> Any:
    """A class of ours without the module it lives in, which may have moved since."""
    return path.rpartition(".")[2] if isinstance(path, str) and path.startswith("lit_llada.") else path


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two configurations, as ``key: old -> new``."""
    before, after = flat(old), flat(new)
    for older, name in RENAMED.items():
        after.pop(older, None)
        before[name] = before.pop(older, None) or before.get(name)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key) and not key.startswith(_NOT_OF_RUN)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys]


def announce(run_dir: str, checkpoint: Path | None, changed: Callable[[], list[str]]) -> None:
    """Say where a run starts, and what a resumed one does differently."""
    if checkpoint is None:
        print(f"run {run_dir}: from the start")
        return
    print(f"run {run_dir}: going on from {checkpoint}")
    for change in changed():
        print(f"  changed: {change}")


def report(trainer: Any, module: Any, run_dir: str, seconds: float) -> None:
    """What the run came to, beside the levels that say whether that is good, and where everything is."""
    table = Table(title=f"{run_dir}: step {trainer.global_step} after {seconds / 60:.1f} minutes", title_justify="left")
    table.add_column("validation")
    (_text_levels if hasattr(trainer.datamodule, "bytes_per_token") else _answer_levels)(table, trainer, module)
    console = Console(soft_wrap=True)
    console.print(table)
    for name, text in _samples(trainer).items():
        console.print(f"[bold]sample {escape(name)}[/bold]\n{escape(text.strip())}\n")
    whole = checkpoints(Path(run_dir) / "checkpoints")
    if whole:
        console.print(f"checkpoint   {whole[-1]}")
    console.print(f"curves       tensorboard --logdir {run_dir}")


def _text_levels(table: Table, trainer: Any, module: Any) -> None:
    data, metrics = trainer.datamodule, trainer.callback_metrics
    table.add_column("bits per byte", justify="right")
    bits = 1 / math.log(2) / data.bytes_per_token
    table.add_row("every token equally likely", f"{math.log(module.backbone.vocabulary) * bits:.3f}")
    table.add_row("token frequencies of the training text", f"{data.unigram_nll * bits:.3f}")
    names = {"order_0": "byte frequencies", "ngram_5": "interpolated byte 5-gram", "xz": "xz -9, the whole text"}
    for name, level in data.baseline_levels.items():
        table.add_row(names.get(name, name), f"{level:.3f}")
    if "val/bits_per_byte" in metrics:
        table.add_row("this model (upper bound)", f"[bold]{float(metrics['val/bits_per_byte']):.3f}[/bold]")


def _answer_levels(table: Table, trainer: Any, module: Any) -> None:
    """There is nothing to hold them against but other runs."""
    table.add_column("this model", justify="right")
    for name, value in trainer.callback_metrics.items():
        if name.startswith("val/") and "decile" not in name:
            table.add_row(name.removeprefix("val/").replace("_", " "), f"{float(value):.3f}")


def _samples(trainer: Any) -> dict[str, str]:
    """What the model last wrote, by name."""
    looks = [callback.latest for callback in trainer.callbacks if isinstance(callback, SampleLogger)]
    return {name: text for look in looks for name, text in look.items()}
