"""Writes what every prepared folder has: the manifest, and the folder at once; tells whether one is up to date."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lit_llada.data.folder import FORMAT, DataFolder
from lit_llada.errors import UserError
from lit_llada.files import replacing_folder
from lit_llada.prepare.splits import Split
from lit_llada.text.tokenizer import Tokenizer
from lit_llada.version import __version__

SHARD = 1 << 20  # bytes of text that a worker takes at a time


@contextlib.contextmanager
def in_place_when_done(target: Path) -> Iterator[Path]:
    """A folder beside `target` to fill, which takes its place at the end; see :func:`replacing_folder`.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with replacing_folder(target) as part:
            yield part
    except OSError as error:  # a full disk, a folder that one may not write to
        raise UserError(f"{error.filename or target}: {error.strerror or error}") from error


def write_manifest(
    part: Path,
    kind: str,
    tokenizer: Tokenizer,
    tokenizer_name: str,
    sources: list[dict[str, Any]],
    options: dict[str, Any],
    splits: Mapping[Split, dict[str, Any]],
    **more: Any,
) -> None:
    """Write `part`/manifest.json, which says all that the folder was made of."""
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "tokenizer": {
            "kind": tokenizer_name.partition(":")[0] if tokenizer_name.startswith(("byte", "bpe:")) else "file",
            "digest": tokenizer.digest,
            "vocab_size": tokenizer.vocab_size,
            "mask_id": tokenizer.mask_id,
            "eos_id": tokenizer.eos_id,
        },
        "dtype": item_type(tokenizer),
        "inputs": sources,
        "options": options,
        "versions": {
            "python": platform.python_version(),
            "lit_llada": __version__,
            **{p: version(p) for p in ("litdata", "numpy", "tokenizers", "torch")},
        },
        **more,
        "splits": splits,
    }
    (part / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def item_type(tokenizer: Tokenizer) -> str:
    """The integers that hold an id on disk."""
    return "uint16" if tokenizer.vocab_size <= 1 << 16 else "int32"


def tokenizer_key(name: str) -> str:
    """What names the tokenizer in the manifest: a file goes by its contents."""
    path = Path(name)
    return f"file:{Tokenizer.load(path).digest}" if path.exists() else name


def up_to_date(
    target: Path, kind: str, sources: list[dict[str, Any]], options: dict[str, Any], overwrite: bool
) -> bool:
    """Whether `target` is already there, whole, and made of the same.

    Raises:
        UserError: it is something else, and `overwrite` is not set.
    """
    if not target.exists():
        return False
    if not (target / "manifest.json").is_file():
        if not any(target.iterdir()):
            return False
        raise UserError(f"{target} exists and is not a prepared folder; give another --out")
    if overwrite:
        return False
    try:
        folder = DataFolder.open(str(target))
        folder.check_chunks()
    except UserError as error:
        raise UserError(f"{error} (with --overwrite true)") from None
    if folder.kind != kind:
        raise UserError(f"{target} holds {folder.kind}, not {kind}; give another --out, or --overwrite true")
    # A manifest names the test only where there is one, so a folder that has one may say more than is asked.
    keys = dict.fromkeys([*options, "test_fraction"])
    differs = [key for key in keys if folder.manifest["options"].get(key) != options.get(key)]
    made, asked = ([(s["sha256"], s.get("field")) for s in entries] for entries in (folder.manifest["inputs"], sources))
    if made != asked:
        differs.append("field" if [sha for sha, _ in made] == [sha for sha, _ in asked] else "inputs")
    if differs:
        raise UserError(f"{target} was made with other {', '.join(differs)}; give another --out, or --overwrite true")
    return True
