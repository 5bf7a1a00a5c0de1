"""What README, guides and Makefile type: every option exists, every file they name is there."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from lit_llada.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
README = "\n".join(page.read_text() for page in PAGES)
BLOCKS = [
    block for block in README.split("```")[1::2] if not block.startswith(("text", "python"))
]  # outputs, and test_front_door.py
ON_CHECKPOINTS = tuple(
    f"lit-llada {words}"
    for words in (
        *("sample", "chat", "calibrate", "convert", "evaluate", "prepare preference --from"),
        *("prepare chat my_", "prepare preference my_"),
    )
)
COMMANDS = [line.strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
MAKES = subprocess.run(["make", "--dry-run", "demo", "repl"], cwd=ROOT, capture_output=True, text=True).stdout
ALL = [*COMMANDS, *(line.removeprefix(".venv/bin/") for line in MAKES.splitlines() if "/lit-llada " in line)]


@pytest.mark.parametrize("command", [c for c in ALL if c.startswith(("lit-llada fit", "lit-llada reference"))])
def test_fit_commands_parse(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main([*command.split("#")[0].split()[1:], "--print_config"])
    assert stop.value.code == 0
    assert re.search(r"class_path: lit_llada\.\w+Module", capsys.readouterr().out)


@pytest.mark.parametrize("command", [c for c in ALL if c.startswith(ON_CHECKPOINTS)])
def test_commands_on_checkpoints_parse(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All options are known: what is refused is the checkpoint, which nobody has under that name."""
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command, comments=True)[1:]) == 2
    assert re.search(
        r"(CHECKPOINT|runs/\S+|models/\S+|LLaDA-8B-Base|input my_\S+): no such"
        r"|questions.jsonl cannot|no data folder|no folder runs",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_file_that_is_named_is_there() -> None:
    for page in PAGES:
        text = page.read_text()
        links = [page.parent / name for name in re.findall(r"\]\(((?!http)[^)#]+)\)", text)]
        named = [ROOT / name for name in re.findall(r"`(configs/[\w/.]+|lit_llada/[\w/.]+|tests/[\w/.]+\.py)`", text)]
        for path in [*links, *named]:
            assert path.exists(), f"{page.name}: {path}"


def test_the_makefile_was_read() -> None:
    assert len(ALL) >= len(COMMANDS) + 14


def test_every_block_is_covered() -> None:
    known = ("lit-llada ", "make ", ".venv/bin/tensorboard")
    assert [c for c in COMMANDS if not c.startswith(known)] == []
