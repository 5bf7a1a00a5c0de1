"""Reads the tokenizer, its special ids and the chat template from the text files beside the weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Model

from lit_llada.checkpoint.source import read_json
from lit_llada.errors import UserError
from lit_llada.text.tokenizer import MASK_NAMES, Tokenizer

Files = dict[str, str]

# What ends a turn in the published chat vocabularies.
EOT_NAMES = ("<|eot_id|>", "<|role_end|>", "<|im_end|>")


def first(*ids: Any) -> int | None:
    """The first id that is given; of a list, as in some configurations, its first."""
    flat = (i[0] if isinstance(i, list) and i else i for i in ids)
    return next((i for i in flat if isinstance(i, int)), None)


def read_tokenizer(files: Files, mask_id: int | None = None, eos_id: int | None = None) -> Tokenizer | None:
    """The tokenizer of these files, whose mask and EOS are the tokens that have these ids; None without any.

    Raises:
        UserError: the files do not parse.
    """
    if "tokenizer.json" not in files:
        return None
    config, model = _config(files), _model(files)
    for name, i in (("mask_token", mask_id), ("eos_token", eos_id)):
        if i is not None and (text := model.id_to_token(i)) is not None:
            config[name] = text
    with tempfile.TemporaryDirectory() as folder:
        for file, text in {**files, "tokenizer_config.json": json.dumps(config)}.items():
            (Path(folder) / file).write_text(text, encoding="utf-8", errors="surrogateescape")
        return Tokenizer.load(folder)


def named_mask(files: Files) -> int | None:
    """The id of the mask token that a vocabulary has; None where it has none."""
    if "tokenizer.json" not in files:
        return None
    model, named = _model(files), _config(files).get("mask_token")
    named = named["content"] if isinstance(named, dict) else named
    return next((i for name in (named, *MASK_NAMES) if name and (i := model.token_to_id(name)) is not None), None)


def with_mask(files: Files, rows: int, eos_id: int | None) -> tuple[Files, int]:
    """The files of a vocabulary with a mask token added, and its id; without a tokenizer the next row's."""
    tokenizer = read_tokenizer(files, eos_id=eos_id)
    if tokenizer is None:
        return files, rows
    config = json.dumps(_config(files) | {"mask_token": tokenizer.mask, "eos_token": tokenizer.eos}, indent=2) + "\n"
    return {**files, "tokenizer.json": tokenizer.model.to_str(), "tokenizer_config.json": config}, tokenizer.mask_id


def end_of_turn(tokenizer: Tokenizer | None) -> int | None:
    """The id of what ends a chat turn, by its name; None in a vocabulary without."""
    names: Iterable[str] = EOT_NAMES if tokenizer else ()
    return first(*(tokenizer.model.token_to_id(name) for name in names))  # type: ignore[union-attr]


def read_chat_template(files: Files) -> str | None:
    """The template's jinja source, from wherever a folder may have it: a file of its own, or the tokenizer's."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"]
    template = _config(files, "chat_template.json").get("chat_template") or _config(files).get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template


def _config(files: Files, name: str = "tokenizer_config.json") -> dict[str, Any]:
    return read_json(files.get(name, "{}"), name)


def _model(files: Files) -> Model:
    try:
        return Model.from_str(files["tokenizer.json"])
    except Exception as error:  # the library raises a bare Exception
        raise UserError(f"tokenizer.json does not parse: {error}") from None
