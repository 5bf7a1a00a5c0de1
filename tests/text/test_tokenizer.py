"""Text to ids and back: bytes, learnt pairs, and foreign vocabularies that have never seen a mask token."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Model
from tokenizers import decoders, models, pre_tokenizers

from lit_llada.errors import UserError
from lit_llada.text.tokenizer import Tokenizer

BYTE = Tokenizer.byte()
BPE = Tokenizer.train_bpe(["the quick brown fox and the quick red fox"] * 5, 300)


@given(st.text())
def test_byte_ids_are_the_bytes(text: str) -> None:
    assert BYTE.encode(text) == list(text.encode())
    assert BYTE.decode(BYTE.encode(text)) == text


@given(st.text())
def test_learnt_pairs_round_trip(text: str) -> None:
    assert BPE.decode(BPE.encode(text)) == text


def test_sizes_and_special_ids() -> None:
    assert (BYTE.vocab_size, BYTE.eos_id, BYTE.mask_id) == (258, 256, 257)
    assert BPE.vocab_size <= 300 and len(BPE.encode("the quick")) < len("the quick")
    assert max(BPE.eos_id, BPE.mask_id) < BPE.vocab_size


def test_text_that_spells_a_special_token_is_text() -> None:
    text = f"before {BYTE.eos} and {BYTE.mask}"
    assert BYTE.encode(text) == list(text.encode())
    assert not {BPE.eos_id, BPE.mask_id} & set(BPE.encode(text))

    copy = pickle.loads(pickle.dumps(BYTE))
    assert copy.encode(text) == list(text.encode()) and copy.digest == BYTE.digest


def test_special_tokens_are_read_where_asked() -> None:
    text = f"é{BYTE.mask}b{BYTE.eos}"
    ids, offsets = BYTE.encode_with_offsets(text)
    assert ids == BYTE.encode(text, specials=True) == [*"é".encode(), BYTE.mask_id, ord("b"), BYTE.eos_id]
    assert [text[start:stop] for start, stop in offsets] == ["é", "é", BYTE.mask, "b", BYTE.eos], "two bytes, one sign"
    assert BYTE.encode(text) == list(text.encode()), "and only there"


def test_special_tokens_by_their_text(foreign: Path) -> None:
    assert BYTE.special_ids == {BYTE.eos: 256, BYTE.mask: 257}
    model = Model.from_file(str(foreign / "tokenizer.json"))
    model.add_special_tokens(["<|turn|>"])
    model.add_tokens(["word"])
    tokenizer = Tokenizer(model, eos="</s>")
    assert tokenizer.special_ids == {"</s>": 3, "<|turn|>": 4, "<|mask|>": 6}


def test_special_ids_are_shown_as_asked() -> None:
    ids = [*BYTE.encode("ab"), BYTE.mask_id, BYTE.mask_id, *BYTE.encode("c"), BYTE.eos_id]
    assert BYTE.decode(ids) == "ab\u2591\u2591c"
    assert BYTE.decode(ids, mask="_", eos="|") == "ab__c|"


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    BPE.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.digest == BPE.digest != BYTE.digest
    assert loaded.encode("the red fox") == BPE.encode("the red fox")
    assert (loaded.mask_id, loaded.eos_id) == (BPE.mask_id, BPE.eos_id)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A vocabulary with an end of its own and no mask token."""
    model = Model(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2, "</s>": 3}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_foreign_vocabulary_keeps_its_ids_and_gets_a_mask(foreign: Path) -> None:
    (foreign / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    tokenizer = Tokenizer.load(foreign)
    assert (tokenizer.eos_id, tokenizer.mask_id, tokenizer.vocab_size) == (3, 4, 5)
    assert tokenizer.encode("a b a c") == [0, 1, 0, 2]


def test_without_a_config_known_names_are_taken_and_the_rest_added(foreign: Path) -> None:
    tokenizer = Tokenizer.load(foreign / "tokenizer.json")
    assert (tokenizer.eos_id, tokenizer.mask_id) == (3, 4), "</s> is a name that everybody knows"


def test_a_word_after_a_mask_keeps_its_space() -> None:
    vocab = {"<unk>": 0, "▁": 1, "h": 2, "i": 3, "▁h": 4, "▁hi": 5}
    model = Model(models.BPE(vocab=vocab, merges=[("▁", "h"), ("▁h", "i")], unk_token="<unk>"))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = Tokenizer(model)
    first, _, last = tokenizer.encode("hi hi hi")
    assert tokenizer.decode([first, tokenizer.mask_id, last]) == "hi░ hi"


def test_a_vocabulary_with_holes(tmp_path: Path) -> None:
    sparse = Tokenizer(Model(models.WordLevel({"a": 0, "b": 90}, unk_token="a")))
    assert sparse.vocab_size == 91 and {sparse.eos_id, sparse.mask_id} == {2, 3}
    with pytest.raises(UserError, match="need an id each"):
        Tokenizer(Model(models.WordLevel({"a": 0, "b": 2}, unk_token="a")))


def test_bad_tokenizers_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json does not parse"):
        Tokenizer.load(tmp_path)
    BYTE.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is not a JSON object"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="nowhere: no such file"):
        Tokenizer.load("nowhere")
    with pytest.raises(UserError, match="at least 258"):
        Tokenizer.train_bpe(["a"], 100)
