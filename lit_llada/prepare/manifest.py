"""What is the same for every prepared folder? How it appears, what its manifest says, when it is up to date."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lit_llada.data.folder import FORMAT, DataFolder
from lit_llada.errors import UserError
from lit_llada.files import text_hash
from lit_llada.text.tokenizer import Tokenizer
from lit_llada.version import __version__

SHARD = 1 << 20  # bytes of text that a worker takes at a time


@contextlib.contextmanager
def in_place_when_done(target: Path) -> Iterator[Path]:
    """A folder beside `target` to fill, which takes its place at the end; what a killed run left there is removed."""
    part, old = (target.with_name(target.name + suffix) for suffix in (".part", ".old"))
    try:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if target.exists():
            os.replace(target, old)
        os.replace(part, target)
    except OSError as error:  # a full disk, a folder that one may not write to
        raise UserError(f"{error.filename or target}: {error.strerror or error}") from error
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)


def write_manifest(
    part: Path,
    kind: str,
    model: Tokenizer,
    tokenizer: str,
    sources: list[dict[str, Any]],
    options: dict[str, Any],
    splits: dict[str, dict[str, Any]],
    **more: Any,
) -> None:
    """Write `part`/manifest.json, which says all that the folder was made of."""
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "tokenizer": {
            "kind": tokenizer.partition(":")[0] if tokenizer.startswith(("byte", "bpe:")) else "file",
            "digest": model.digest,
            "vocab_size": model.vocab_size,
            "mask_id": model.mask_id,
            "eos_id": model.eos_id,
        },
        "dtype": item_type(model),
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


def item_type(model: Tokenizer) -> str:
    """The integers that hold an id on disk."""
    return "uint16" if model.vocab_size <= 1 << 16 else "int32"


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
    differs = [key for key in options if folder.manifest["options"].get(key) != options[key]]
    made, asked = ([(s["sha256"], s.get("field")) for s in entries] for entries in (folder.manifest["inputs"], sources))
    if made != asked:
        differs.append("field" if [sha for sha, _ in made] == [sha for sha, _ in asked] else "inputs")
    if differs:
        raise UserError(f"{target} was made with other {', '.join(differs)}; give another --out, or --overwrite true")
    return True


def check_share(val_fraction: float) -> None:
    """UserError if it is no share."""
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}; it must lie between 0 and 1")


def held_out_below(texts: Iterable[str], share: float, what: str = "document") -> int | None:
    """The hash below which a text is held out, so that both splits get one; None if there is a single text.

    Stops reading as soon as both splits have a text, which in a large corpus is soon.

    Raises:
        UserError: there is none at all.
    """
    bound, hashes = int(share * 2**64), set()
    for text in texts:
        hashes.add(text_hash(text))
        if min(hashes) < bound <= max(hashes):
            return bound
    if not hashes:
        raise UserError(f"the inputs hold no {what}")
    if len(hashes) == 1:
        return None
    return min(hashes) + 1 if min(hashes) >= bound else max(hashes)
