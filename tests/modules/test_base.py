"""What every training module shows of its options: to a reader, to mypy and on the command line."""

from __future__ import annotations

import inspect
from pathlib import Path

import jsonargparse
import pytest
from mypy import api

from lit_llada.modules.base import DiffusionModule
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.modules.sft import SFTModule
from lit_llada.modules.vrpo import VRPOModule

MODULES = [PretrainingModule, SFTModule, VRPOModule]
SHARED = [*inspect.signature(DiffusionModule).parameters]


@pytest.mark.parametrize("cls", MODULES)
def test_a_constructor_names_all_its_options_and_shares_types_and_defaults_with_the_base(cls: type) -> None:
    options, shared = (inspect.signature(each).parameters for each in (cls, DiffusionModule))
    assert not {p.kind for p in options.values()} & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    assert [options[name] for name in shared] == [*shared.values()]
    assert [*options][: len(shared)] == [*shared], "what is given by position stays in its place"


@pytest.mark.parametrize("cls", MODULES)
def test_a_constructor_hands_every_shared_option_on(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def record(self: DiffusionModule, **options: object) -> None:
        given.update(options)
        raise StopIteration

    monkeypatch.setattr(DiffusionModule, "__init__", record)
    asked = {name: object() for name in inspect.signature(cls).parameters}
    with pytest.raises(StopIteration):
        cls(**asked)
    assert given == {name: value for name, value in asked.items() if name in SHARED}


@pytest.mark.parametrize("cls", MODULES)
def test_every_option_has_its_line_of_help(cls: type) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, fail_untyped=False)
    found = {action.dest: action.help or "" for action in parser._actions}
    for name in inspect.signature(cls).parameters:
        if name not in ("schedule", "estimator"):  # groups, whose fields are options of their own
            assert len(found[name]) > 10, name


@pytest.mark.slow  # mypy reads the package and what it imports
def test_mypy_finds_a_misspelt_option(tmp_path: Path) -> None:
    lines = ["from lit_llada import PretrainingModule, SFTModule, VRPOModule"]
    lines += [f"{cls.__name__}(lr=1e-3)\n{cls.__name__}(lrr=1e-3)" for cls in MODULES]
    file = tmp_path / "misspelt.py"
    file.write_text("\n".join(lines))
    out, _, _ = api.run([str(file), "--ignore-missing-imports", "--follow-imports=silent"])
    errors = [line.split(": ", 1)[1] for line in out.splitlines() if ": error:" in line]
    assert len(errors) == len(MODULES), out
    for cls, error in zip(MODULES, errors, strict=True):
        assert f'argument "lrr" for "{cls.__name__}"' in error
