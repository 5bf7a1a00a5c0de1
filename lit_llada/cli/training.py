"""``fit``, ``validate``, ``test`` and ``reference``: LightningCLI with layered overlays, one run directory and resume.

Every callback has its own namespace (``--sampling.every_n_steps 200``, ``--ema.enabled true``), so that an overlay
changes one option without repeating a list; ``trainer.callbacks`` is left to the user's own.
"""

from __future__ import annotations

import inspect
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from lit_llada.backbone.config import BackboneConfig
from lit_llada.callbacks.ema import EMA
from lit_llada.callbacks.exact_match import ExactMatch
from lit_llada.callbacks.noise_curve import NoiseCurve
from lit_llada.callbacks.progress import ProgressLines, StepsBar, shows_bars
from lit_llada.callbacks.provenance import Provenance
from lit_llada.callbacks.router import RouterLoad
from lit_llada.callbacks.samples import SampleLogger
from lit_llada.callbacks.step_checkpoint import StepCheckpoint, checkpoints
from lit_llada.callbacks.throughput import Throughput
from lit_llada.cli.memory import smaller
from lit_llada.cli.parser import Parser, causes
from lit_llada.cli.runs import RENAMED, announce, changes, default_run_dir, find_checkpoint, report
from lit_llada.data.answer_datamodule import AnswerDataModule
from lit_llada.data.base import PreparedDataModule
from lit_llada.data.text_datamodule import DiffusionDataModule
from lit_llada.errors import UserError
from lit_llada.modules.base import DiffusionModule
from lit_llada.modules.cached_reference import ReferenceWriter
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.modules.sft import SFTModule
from lit_llada.modules.vrpo import VRPOModule
from lit_llada.objectives.preference import Estimator
from lit_llada.training.schedules import Schedule
from lit_llada.training.trainer import Trainer

# namespace -> class, in the order in which they run. The average must have moved before anybody looks at it.
CALLBACKS = {
    "ema": EMA,
    "noise_curve": NoiseCurve,
    "router": RouterLoad,
    "sampling": SampleLogger,
    "exact_match": ExactMatch,
    "throughput": Throughput,
    "provenance": Provenance,
    "checkpoint": StepCheckpoint,
}
OFF_BY_DEFAULT = ("ema", "exact_match")  # one costs a second copy of the net, the other needs data with answers

# Whose parameters may stand under ``model`` and ``data``.
MODULES = (DiffusionModule, PretrainingModule, SFTModule, VRPOModule, BackboneConfig, Schedule, Estimator)
BELOW: tuple[type, ...] = (*MODULES, DiffusionDataModule, AnswerDataModule)


class TrainingParser(Parser, LightningArgumentParser):
    """LightningCLI's parser with errors of one line."""

    def known_names(self) -> set[str]:
        """Also what stands under ``model`` and ``data``, whose classes are only known from the overlays."""
        return super().known_names() | {name for cls in BELOW for name in inspect.signature(cls).parameters}


class TrainingCLI(LightningCLI):
    """Parses overlays and options and builds module, data and trainer; runs nothing."""

    def __init__(self, verb: str, words: list[str]) -> None:
        self.verb, self.words = verb, words
        warnings.filterwarnings("ignore", r".*treespec, LeafSpec.*")  # of Lightning, about itself
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "Tip:" not in r.getMessage())
        super().__init__(
            DiffusionModule,
            PreparedDataModule,
            trainer_class=Trainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=1,
            save_config_kwargs={"overwrite": True},
            parser_class=TrainingParser,
            parser_kwargs={"prog": f"lit-llada {verb}", "description": f"{verb}: see configs/ for overlays"},
            auto_configure_optimizers=False,
            args=words,
            run=False,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        # Not LightningCLI's: it warns of args beside sys.argv, and sys.argv must stay, for DDP starts it again.
        self.config = parser.parse_args(self.words)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="the run's directory (default: runs/ and the names of the overlays and changed options)",
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default="auto",
            help="auto: the newest checkpoint in run_dir, if there is one; none: start anew; or a path",
        )
        if self.verb == "reference":
            parser.add_argument(
                "--out",
                type=str | None,
                default=None,
                help="the file to write (default: model.reference, or else reference.safetensors in run_dir)",
            )
        # So that --data.path X is enough for text; overlays for answers name their own class.
        parser.set_defaults({"data": {"class_path": "lit_llada.DiffusionDataModule"}})
        for old, new in RENAMED.items():
            parser.add_argument(f"--{old}", default=None, help=f"older name of {new}")
        for name, callback in CALLBACKS.items():
            parser.add_argument(
                f"--{name}.enabled", type=bool, default=name not in OFF_BY_DEFAULT, help=f"use {callback.__name__}"
            )
            parser.add_class_arguments(callback, name, fail_untyped=False, instantiate=False, skip={"folder"})
        parser.add_class_arguments(ProgressLines, "progress", instantiate=False)  # off: trainer.enable_progress_bar

    def before_instantiate_classes(self) -> None:
        if self.config.trainer.default_root_dir is not None:
            raise UserError("trainer.default_root_dir is set: set run_dir instead, it holds all of a run")
        for old, new in RENAMED.items():
            if self.config[old] is not None:
                self.config[new], self.config[old] = self.config[old], None
        self.config.run_dir = self.run_dir = self.config.run_dir or default_run_dir(self.words)

    def instantiate_classes(self) -> None:
        """Module, data and trainer; a UserError of their constructors comes out as it is."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            wrapped = next((cause for cause in causes(error) if isinstance(cause, UserError)), None)
            if wrapped is None:
                raise
            raise wrapped from None

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """The trainer with our callbacks behind the user's, and everything that is written under ``run_dir``."""
        chosen = self.config_init.trainer
        ours = []
        for name, callback in CALLBACKS.items():
            options = self.config_init[name].as_dict()
            for old in RENAMED:
                options.pop(old.removeprefix(f"{name}."), None)
            enabled = options.pop("enabled") and self.verb != "reference"
            if enabled and not (name == "checkpoint" and chosen.fast_dev_run):
                ours.append(callback(**options))
        if chosen.enable_progress_bar is not False:
            lines = ProgressLines(**self.config_init["progress"].as_dict())
            ours.append(StepsBar() if shows_bars(Console()) else lines)
        theirs = chosen.callbacks or []
        kwargs |= {
            "callbacks": [*(theirs if isinstance(theirs, list) else [theirs]), *ours],
            "default_root_dir": self.run_dir,
        }
        if chosen.logger is None or chosen.logger is True:
            kwargs["logger"] = TensorBoardLogger(self.run_dir, name="", version="", default_hp_metric=False)
        if not any(isinstance(callback, StepCheckpoint) for callback in ours):
            kwargs["enable_checkpointing"] = False
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise UserError(f"trainer: {error}") from error

    def checkpoint(self) -> Path | None:
        """Where the run goes on; the model is told in time."""
        wish, training = self.config.ckpt_path, self.verb == "fit"
        self.model.resumes_from = checkpoint = find_checkpoint(wish, self.run_dir, training=training)
        return checkpoint

    def changed_since_last_start(self) -> list[str]:
        """What this configuration changes in the one that the run was last started with."""
        path = Path(self.run_dir) / "config.yaml"
        if not path.is_file():
            return []
        now = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        return changes(yaml.safe_load(path.read_text()), now)


def fit(words: list[str]) -> int:
    """Train, or go on training; the configuration given now is the one that counts."""
    cli = TrainingCLI("fit", words)
    checkpoint = cli.checkpoint()
    if cli.trainer.is_global_zero:
        announce(cli.run_dir, checkpoint, cli.changed_since_last_start)
    began = time.monotonic()
    with _remarks(cli):
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    if cli.model.stop_requested:
        if cli.trainer.is_global_zero:
            print(f"stopped at step {cli.trainer.global_step} by SIGTERM; the same command goes on from there")
        return 143
    if checkpoint is not None and not cli.trainer.callback_metrics:
        print(f"nothing left to train: trainer.max_steps is {cli.trainer.max_steps}")
        with _remarks(cli):
            cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    if cli.trainer.is_global_zero:
        report(cli.trainer, cli.model, cli.run_dir, time.monotonic() - began)
    return 0


def validate(words: list[str]) -> int:
    """Validate the run's newest checkpoint, or the one given."""
    cli = TrainingCLI("validate", words)
    with _remarks(cli):
        cli.trainer.validate(cli.model, cli.datamodule, ckpt_path=cli.checkpoint(), weights_only=True)
    return 0


def test(words: list[str]) -> int:
    """Like validate, over the test split of the data."""
    cli = TrainingCLI("test", words)
    with _remarks(cli):
        cli.trainer.test(cli.model, cli.datamodule, ckpt_path=cli.checkpoint(), weights_only=True)
    return 0


def reference(words: list[str]) -> int:
    """Write what the reference of VRPO says of every pair: ``fit --model.reference FILE`` then needs no twin.

    Takes the overlays of the run itself, and makes its batches: then the losses of a first epoch are the live ones, bit
    for bit.
    """
    cli = TrainingCLI("reference", words)
    if not isinstance(cli.model, VRPOModule):
        raise UserError(f"reference is for VRPO, and model is {type(cli.model).__name__}: give the overlays of its run")
    out = cli.config.out or cli.model.reference or f"{cli.run_dir}/reference.safetensors"
    cli.trainer.callbacks.append(ReferenceWriter(out))  # type: ignore[attr-defined]
    with _remarks(cli):
        cli.trainer.predict(cli.model, datamodule=cli.datamodule, return_predictions=False)
    if cli.trainer.is_global_zero:
        print(f"{out}: train on it with --model.reference {out}")
    return 0


@contextmanager
def _remarks(cli: TrainingCLI) -> Iterator[None]:
    """Leave on an exception what the line about it will say: the last whole checkpoint, and what needs less memory."""
    try:
        yield
    except Exception as error:
        whole = checkpoints(Path(cli.run_dir) / "checkpoints")
        error.last_good = whole[-1] if whole else None  # type: ignore[attr-defined]
        error.smaller = smaller(cli.verb, cli.model, cli.datamodule, cli.trainer)  # type: ignore[attr-defined]
        raise
