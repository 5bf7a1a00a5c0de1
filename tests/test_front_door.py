"""The front door for Python: the examples of README and of ``help(lit_llada)`` run as they stand."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lit_llada

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_file: Path, taught: Any) -> Path:
    """A directory in which the examples' files are there."""
    monkeypatch.chdir(tmp_path)
    for name, source in (("demo/checkpoints/step=0000450", run_file), ("sft/checkpoints/step=0000800", taught[1])):
        place = tmp_path / "runs" / f"{name}.ckpt"
        place.parent.mkdir(parents=True)
        shutil.copy(source, place)
    shutil.copytree(taught[0], tmp_path / "data" / "repl")
    (tmp_path / "my_folder").mkdir()
    for number in range(12):
        (tmp_path / "my_folder" / f"{number}.txt").write_text(f"The text of number {number}.\n" * (40 + number))
    return tmp_path


def lines(code: str) -> list[str]:
    return [line for line in code.splitlines() if line.strip()]


def test_a_checkpoint_to_a_text_is_three_lines(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = EXAMPLES[0]
    assert len(lines(example)) == 3
    names: dict[str, Any] = {}
    exec(example, names)
    assert capsys.readouterr().out.endswith("\n")
    [answer] = lit_llada.sample(names["checkpoint"], "The value of ", new_tokens=32)
    assert isinstance(answer, lit_llada.Sample) and answer.prompt == "The value of " and 0 < answer.tokens <= 32


def test_a_notebook_trains_in_six_lines(workshop: Path) -> None:
    example = EXAMPLES[1]
    assert len(lines(example)) == 6
    short = example.replace("max_steps=200, val_check_interval=100", "max_steps=4, val_check_interval=2")
    assert short != example
    names: dict[str, Any] = {}
    exec(short, names)
    module = names["module"]
    assert module.trainer.global_step == 4 and "val/loss" in module.trainer.callback_metrics


def test_the_package_begins_with_six_lines_that_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documentation = ast.get_docstring(ast.parse(Path(lit_llada.__file__).read_text())) or ""
    example = "\n".join(line[4:] for line in documentation.splitlines() if line.startswith("    "))
    assert len(lines(example)) <= 6
    exec(example, {})
    assert "exact match, %" in capsys.readouterr().out


def test_every_public_name_says_what_it_is() -> None:
    for name in lit_llada.__all__:
        found = getattr(lit_llada, name)
        assert not isinstance(found, ModuleType)
        assert isinstance(found, dict) or (found.__doc__ or "").strip(), name
