"""Turns text into ids and back: a file of the ``tokenizers`` library, and the special ids of a diffusion model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Model

from lit_llada.errors import UserError

EOS, MASK = "<|endoftext|>", "<|mask|>"
# What published vocabularies call them, where no tokenizer_config.json says.
EOS_NAMES = (EOS, "<|end_of_text|>", "</s>", "<eos>")
MASK_NAMES = (MASK, "<|mdm_mask|>", "[MASK]", "<mask>")


class Tokenizer:
    """A vocabulary with an end-of-document token and a mask token.

    Args:
        model: vocabulary and rules, an object of the ``tokenizers`` library.
        eos: the text of the end-of-document token; added where the vocabulary has none.
        mask: the text of the mask token; added where the vocabulary has none.

    Attributes:
        eos_id, mask_id: their ids.
        special_ids: the id of every special token by its text.
        vocab_size: one more than the largest id, so that every id has its row even in a vocabulary with holes.

    Raises:
        UserError: one token cannot be both, or a hole in the vocabulary would give a new token an id that is taken.
    """

    def __init__(self, model: Model, eos: str = EOS, mask: str = MASK) -> None:
        model.add_special_tokens([AddedToken(token, normalized=False) for token in (eos, mask)])
        model.no_truncation()
        model.no_padding()
        # A text that spells a special token is text: nobody's document may end, or be masked, by what it says.
        model.encode_special_tokens = True
        self.model, self.eos, self.mask = model, eos, mask
        vocabulary = model.get_vocab(with_added_tokens=True)
        self.eos_id, self.mask_id = vocabulary[eos], vocabulary[mask]
        added = model.get_added_tokens_decoder()
        self.special_ids = {token.content: i for i, token in sorted(added.items()) if token.special}
        self.vocab_size = max(vocabulary.values()) + 1
        if sum(i in (self.eos_id, self.mask_id) for i in vocabulary.values()) != 2:
            raise UserError(f"tokenizer: {eos!r} and {mask!r} need an id each that no other token has; renumber it")

    @classmethod
    def byte(cls) -> Tokenizer:
        """256 bytes, EOS and mask: the id of a byte is its value."""
        vocab = {char: byte for byte, char in enumerate(_byte_characters())}
        return cls(_byte_level(models.BPE(vocab=vocab, merges=[]), use_regex=False))

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Byte-pair encoding learnt from ``texts``, with ``vocab_size`` ids in all.

        Raises:
            UserError: fewer ids than bytes and specials.
        """
        if vocab_size < 258:
            raise UserError(f"tokenizer bpe:{vocab_size}: give at least 258 (every byte, EOS and mask), or take byte")
        model = _byte_level(models.BPE(), use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 2, initial_alphabet=sorted(_byte_characters()), show_progress=False
        )
        model.train_from_iterator(texts, trainer)
        return cls(model)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """A ``tokenizer.json`` or a folder with one; ``tokenizer_config.json`` beside it may name EOS and mask.

        Raises:
            UserError: no such file, or one that does not parse.
        """
        file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise UserError(f"tokenizer {path}: no such file; give byte, bpe:SIZE or the path of a tokenizer.json")
        try:
            model = Model.from_file(str(file))
        except Exception as error:  # the library raises a bare Exception
            raise UserError(f"tokenizer {file} does not parse: {error}") from None
        config = file.with_name("tokenizer_config.json")
        try:
            names = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
            eos = _content(names.get("eos_token")) or _known(model, EOS_NAMES)
            mask = _content(names.get("mask_token")) or _known(model, MASK_NAMES)
        except (ValueError, AttributeError):
            raise UserError(f"tokenizer {config} is not a JSON object; correct or remove it") from None
        return cls(model, eos, mask)

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.model.to_str())
        names = {"eos_token": self.eos, "mask_token": self.mask}
        (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=2) + "\n")

    @property
    def digest(self) -> str:
        """sha256 over everything that decides an id."""
        return hashlib.sha256(f"{self.model.to_str()}\0{self.eos}\0{self.mask}".encode()).hexdigest()

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Ids of ``text``; no special tokens are added. With ``specials`` those that it spells are read as such."""
        if specials:
            return self.encode_with_offsets(text)[0]
        return self.model.encode(text, add_special_tokens=False).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a rendered template, its special tokens read as such, and each one's place ``(start, stop)`` in it."""
        self.model.encode_special_tokens = False
        try:
            encoding = self.model.encode(text, add_special_tokens=False)
        finally:
            self.model.encode_special_tokens = True
        return encoding.ids, encoding.offsets

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of every text."""
        return [encoding.ids for encoding in self.model.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int], mask: str = "\u2591", eos: str = "") -> str:
        """Text of ``ids``, with ``mask`` and ``eos`` written for the special ids."""
        ids = [int(i) for i in ids]
        # All at once: a decoder may drop the space before whatever it takes for the first word.
        text = self.model.decode(ids, skip_special_tokens=False)
        for special, name, shown in ((self.mask_id, self.mask, mask), (self.eos_id, self.eos, eos)):
            if special in ids:
                text = text.replace(name, shown)
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickling the wrapped tokenizer would forget `encode_special_tokens`.
        return _restore, (self.model.to_str(), self.eos, self.mask)


def _restore(model: str, eos: str, mask: str) -> Tokenizer:
    return Tokenizer(Model.from_str(model), eos, mask)


def _known(model: Model, names: tuple[str, ...]) -> str:
    return next((name for name in names if model.token_to_id(name) is not None), names[0])


def _byte_level(model: models.Model, use_regex: bool) -> Model:
    tokenizer = Model(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _content(token: str | dict[str, str] | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token
