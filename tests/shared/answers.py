"""Two small folders of answers: conversations of one to three turns, and preference pairs; bytes as tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lit_llada.prepare.conversations import prepare_chat, prepare_preference


def write_rows(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def dialogue(number: int) -> list[dict[str, str]]:
    """Of one to three turns; every text in it says which dialogue and which turn it is of."""
    return [
        {"role": role, "content": f"{number} {turn} {role} {'x' * (number * 7 % 40)}"}
        for turn in range(number % 3 + 1)
        for role in ("user", "assistant")
    ]


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chat")
    rows = write_rows(root / "rows.jsonl", [{"messages": dialogue(n)} for n in range(60)])
    return prepare_chat([rows], str(root / "data"), val_fraction=0.2, workers=1, chunk_mb=0.004)


@pytest.fixture(scope="session")
def pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    rows = [{"prompt": f"p{n}", "chosen": f"good {n}" + "!" * (n % 9), "rejected": f"bad {n}"} for n in range(40)]
    file = write_rows(root / "rows.jsonl", rows)
    return prepare_preference([file], str(root / "data"), val_fraction=0.2, workers=1)
