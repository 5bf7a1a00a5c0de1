"""Every overlay in configs/ parses, builds, and says what it claims. No net is built: that waits for the trainer."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_llada.backbone.config import SIZES, BackboneConfig
from lit_llada.cli.training import CALLBACKS, TrainingCLI
from lit_llada.data.answer_datamodule import AnswerDataModule
from lit_llada.data.text_datamodule import DiffusionDataModule
from lit_llada.modules.base import DiffusionModule
from lit_llada.training.strategies import FSDP2Strategy

CONFIGS = Path(__file__).parents[1] / "configs"
OVERLAYS = sorted(CONFIGS.rglob("*.yaml"))
MODELS = sorted((CONFIGS / "model").glob("*.yaml"))
RECIPE = ["-c", str(CONFIGS / "recipe" / "demo.yaml")]


def build(*words: str) -> TrainingCLI:
    """What ``lit-llada fit`` builds before it trains, on one CPU process and without a logger."""
    safe = ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    return TrainingCLI("fit", [*words, *safe])


def test_there_are_overlays_of_every_layer() -> None:
    assert {p.parent.name for p in OVERLAYS} == {"recipe", "model", "data", "cluster", "debug"}
    assert len(OVERLAYS) >= 20


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_overlay_builds(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one on top of a recipe; every value in it arrives in the parsed configuration."""
    monkeypatch.chdir(tmp_path)
    recipe = [] if path.parent.name == "recipe" else RECIPE
    gpus_only = path.stem == "fsdp1"
    if gpus_only:  # refused on this machine when the trainer is built; its arguments are still checked
        monkeypatch.setattr(TrainingCLI, "instantiate_trainer", lambda self: None)
    start = ["--model.init_from", "a.ckpt"] if path.stem.startswith("vrpo") else []  # opened by the trainer
    cli = build(*recipe, "-c", str(path), *start)
    assert isinstance(cli.model, DiffusionModule)
    assert cli.model.net is None
    assert gpus_only or cli.trainer.default_root_dir == cli.run_dir
    for key, value in leaves(yaml.safe_load(path.read_text())):
        if key not in ("trainer.accelerator", "model.init_args.init_from"):  # set above
            assert plain(cli.config.get(key)) == value, key


def leaves(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(tree, dict) and tree and not prefix.endswith("path."):
        return [leaf for key, value in tree.items() for leaf in leaves(value, f"{prefix}{key}.")]
    return [(prefix[:-1], tree)]


def plain(value: Any) -> Any:
    """As YAML has it: namespaces are mappings, a set of classes is a list of their paths, an enum is its name."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, set):
        return [f"{cls.__module__}.{cls.__qualname__}" for cls in value]
    return value.as_dict() if hasattr(value, "as_dict") else value


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_model_overlay_is_the_named_size(path: Path) -> None:
    """It writes out each field in which sizes differ: the last model overlay of several wins as a whole."""
    written = yaml.safe_load(path.read_text())
    assert set(written) == {"model"}
    assert set(written["model"]) == {"init_args"}
    assert set(written["model"]["init_args"]) == {"backbone"}
    backbone = written["model"]["init_args"]["backbone"]
    default = asdict(BackboneConfig())
    assert set(backbone) == {
        name for size in SIZES.values() for name, value in asdict(size).items() if value != default[name]
    }
    assert asdict(BackboneConfig(**backbone)) == asdict(SIZES[path.stem])
    assert build(*RECIPE, "-c", str(path)).model.backbone == SIZES[path.stem]


def test_every_field_of_the_backbone_is_documented() -> None:
    for field in fields(BackboneConfig):
        assert re.search(rf"^ +{field.name}: \S", BackboneConfig.__doc__ or "", re.MULTILINE), field.name


def test_every_size_has_an_overlay() -> None:
    assert {p.stem for p in MODELS} == set(SIZES)


@pytest.mark.parametrize(
    ("first", "last"),
    [("moe_demo", "demo"), ("moe_7b_a1b", "demo"), ("illada_8b", "8b"), ("1b", "illada_8b"), ("8b", "moe_7b_a1b")],
)
def test_the_last_model_overlay_wins_as_a_whole(first: str, last: str) -> None:
    overlays = [word for name in (first, last) for word in ("-c", str(CONFIGS / "model" / f"{name}.yaml"))]
    assert build(*RECIPE, *overlays).model.backbone == SIZES[last]


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_overlay_begins_with_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")


def test_options_beat_overlays_and_overlays_add_up() -> None:
    cli = build(*RECIPE, "-c", str(CONFIGS / "data" / "text.yaml"), "--model.lr", "0.5", "--ema.decay", "0.9")
    assert cli.model.lr == 0.5
    assert cli.config.ema.decay == 0.9
    assert cli.config.data.init_args.path == "data/text"
    assert cli.config.data.init_args.length == 128  # the recipe's


def test_data_overlays_choose_their_class_and_short_options_reach_it() -> None:
    overlay = ["-c", str(CONFIGS / "recipe" / "sft.yaml"), "-c", str(CONFIGS / "data" / "repl.yaml")]
    cli = build(*overlay, "--data.path", "x", "--data.init_args.eos", "one")
    assert isinstance(cli.datamodule, AnswerDataModule)
    assert (cli.datamodule.path, cli.datamodule.eos, cli.datamodule.batch_size) == ("x", "one", 2)
    assert cli.run_dir == "runs/sft-repl,data.path=x,data.eos=one"
    text = build("--model", "lit_llada.PretrainingModule", "--data.path", "x").datamodule
    assert isinstance(text, DiffusionDataModule)  # without an overlay
    assert text.path == "x"


def test_callbacks_are_switched_one_by_one_and_the_users_own_stay() -> None:
    own = "--trainer.callbacks+=lightning.pytorch.callbacks.DeviceStatsMonitor"
    names = [type(callback).__name__ for callback in build(*RECIPE, own).trainer.callbacks]
    assert "DeviceStatsMonitor" in names
    assert [name for name in names if name in {c.__name__ for c in CALLBACKS.values()}] == [
        callback.__name__ for name, callback in CALLBACKS.items() if name != "exact_match"
    ]
    without = build(*RECIPE, "--ema.enabled", "false", "--sampling.enabled=false", "--checkpoint.enabled=false")
    names = [type(callback).__name__ for callback in without.trainer.callbacks]
    assert not {"EMA", "SampleLogger", "StepCheckpoint", "ModelCheckpoint"} & set(names)
    assert "Throughput" in names


def test_fsdp2_overlay_gives_our_strategy() -> None:
    cli = build(*RECIPE, "-c", str(CONFIGS / "cluster" / "fsdp2.yaml"), "--trainer.devices", "2")
    assert isinstance(cli.trainer.strategy, FSDP2Strategy)


def test_one_seed_is_all_a_run_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in {"demo": "3", "sft": "4"}.items():
        cli = build("-c", str(CONFIGS / "recipe" / f"{name}.yaml"), "--seed_everything", seed)
        assert (cli.model.seed, cli.datamodule.seed) == (int(seed), int(seed))
    cli = build(*RECIPE, "--seed_everything", "3", "--data.seed", "7")
    assert (cli.model.seed, cli.datamodule.seed) == (3, 7)
