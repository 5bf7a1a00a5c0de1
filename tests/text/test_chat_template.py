"""A conversation as text, as ids, and the answers in it; and what is refused before it can spoil a data set."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_llada.errors import UserError
from lit_llada.text.chat_template import ChatTemplate, turn_end
from lit_llada.text.tokenizer import Tokenizer

HEADERS = ["<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
ROLE_TOKENS = ["<role>", "</role>", "<|role_end|>"]


def with_specials(tokenizer: Tokenizer, specials: list[str]) -> Tokenizer:
    tokenizer.model.add_special_tokens(specials)
    return Tokenizer(tokenizer.model)


BYTE = Tokenizer.byte()
LLADA = with_specials(Tokenizer.byte(), HEADERS)  # 258 BOS, 259 and 260 the header's, 261 the turn's end
LLADA_MOE = with_specials(Tokenizer.byte(), ROLE_TOKENS)  # 258 and 259 around the role, 260 the turn's end
BPE = with_specials(Tokenizer.train_bpe(["\n\nyes\n\n\n no, no: no"] * 20, 300), HEADERS)
TOKENIZERS = {"llada": LLADA, "llada_moe": LLADA_MOE, "plain": BYTE}
BOS, LEFT, RIGHT, EOT = 258, 259, 260, 261
# Hypothesis finds the special tokens in the source and tries them.
TEXTS = st.text().filter(lambda text: not any(token in text for t in TOKENIZERS.values() for token in t.special_ids))

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
]
# Llama 3's first template, which begins the assistant's turn whether it is asked to or not.
ALWAYS_PROMPTS = (
    "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
# An answer has no end of its own; the next turn's header is not part of it.
ENDLESS = (
    "{% for message in messages %}{{ '<|start_header_id|>' if message.role == 'user' else '' }}"
    "{{ message.content }}{{ '<|end_header_id|>' if message.role == 'user' else '' }}{% endfor %}"
)


def answers(template: ChatTemplate, tokenizer: Tokenizer, messages: list[dict[str, str]]) -> list[str]:
    ids, spans = template.encode(messages, tokenizer)
    return [tokenizer.model.decode(ids[start:stop], skip_special_tokens=False) for start, stop in spans]


def test_llada_text() -> None:
    expected = (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    )
    template = ChatTemplate.named("llada", LLADA)
    assert template.render(TURNS[1:3]) == expected
    assert template.render(TURNS[1:3], True) == expected + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_llada_moe_text() -> None:
    template = ChatTemplate.named("llada_moe", LLADA_MOE)
    assert template.render(TURNS[:2], add_generation_prompt=True) == (
        "<role>SYSTEM</role>Be brief.<|role_end|><role>HUMAN</role>Hi<|role_end|><role>ASSISTANT</role>"
    )
    assert template.render(TURNS[1:3]) == "<role>HUMAN</role>Hi<|role_end|><role>ASSISTANT</role>Hello<|role_end|>"


def test_plain_text() -> None:
    end = BYTE.eos
    assert ChatTemplate.named("plain", BYTE).render(TURNS[1:3]) == f"user:\nHi{end}assistant:\nHello{end}"


def test_llada_ids_and_spans() -> None:
    def turn(role: bytes, content: bytes) -> list[int]:
        return [LEFT, *role, RIGHT, *b"\n\n", *content, EOT]

    ids, spans = ChatTemplate.named("llada", LLADA).encode(TURNS[1:], LLADA)
    first, second = (turn(b"assistant", text) for text in (b"Hello", b"So."))
    assert ids == [BOS, *turn(b"user", b"Hi"), *first, *turn(b"user", b"Why?"), *second]
    assert [ids[start:stop] for start, stop in spans] == [[*b"Hello", EOT], [*b"So.", EOT]]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_answer_of_a_long_conversation(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    template = ChatTemplate.named(name, tokenizer)
    end = {token: text for text, token in tokenizer.special_ids.items()}[turn_end(template, tokenizer)]
    assert end == {"llada": "<|eot_id|>", "llada_moe": "<|role_end|>", "plain": "<|endoftext|>"}[name]
    assert answers(template, tokenizer, TURNS) == ["Hello" + end, "So." + end]
    assert answers(template, tokenizer, TURNS[:4]) == ["Hello" + end]
    assert template.encode(TURNS[:2], tokenizer).answers == []


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_one_asks_with_is_what_one_trains_on(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    template = ChatTemplate.named(name, tokenizer)
    ids, spans = template.encode(TURNS, tokenizer)
    assert ids[: spans[1][0]] == template.encode(TURNS[:4], tokenizer, add_generation_prompt=True).ids


@pytest.mark.parametrize("name", TOKENIZERS)
@given(contents=st.lists(TEXTS, min_size=2, max_size=4))
def test_contents_survive(name: str, contents: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    template = ChatTemplate.named(name, tokenizer)
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    ids, spans = template.encode(messages, tokenizer)
    assert [tokenizer.decode(ids[a : b - 1]) for a, b in spans] == contents[1::2]
    assert all(ids[b - 1] == turn_end(template, tokenizer) for _, b in spans)


def test_a_token_across_the_border_is_the_answers() -> None:
    assert len(BPE.encode("\n\n\n")) == 1, "the vocabulary has learnt three line breaks"
    template = ChatTemplate.named("llada", BPE)
    messages = [TURNS[1], {"role": "assistant", "content": "\n no"}]
    assert answers(template, BPE, messages) == ["\n\n\n no<|eot_id|>"]


def test_a_folders_own_template(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    source = (
        "{%- for message in messages %}\n"
        "    {%- if loop.first %}{{ bos_token }}{% endif %}\n"
        "    {%- if tools is not none %}{{ raise_exception('no tools') }}{% endif %}\n"
        "[{{ message.role }}] {{ message.content }}{{ eos_token }}\n"
        "{%- endfor %}\n"
        "{% if add_generation_prompt %}[assistant] {% endif %}\n"
    )
    config = {"bos_token": {"content": "<|startoftext|>"}, "eos_token": "<|endoftext|>", "chat_template": "other"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.load(tmp_path).render(TURNS[1:2]) == "other"
    named = [{"name": "tools", "template": "other"}, {"name": "default", "template": source}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    from_list = ChatTemplate.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text(source)
    template = ChatTemplate.load(tmp_path)
    assert from_list == template == pickle.loads(pickle.dumps(template))
    assert template.render(TURNS[1:3]) == ("<|startoftext|>[user] Hi<|endoftext|>[assistant] Hello<|endoftext|>")
    assert answers(template, LLADA, TURNS) == ["Hello<|endoftext|>", "So.<|endoftext|>"]
    assert turn_end(template, LLADA) == LLADA.eos_id


def test_a_template_that_always_prompts() -> None:
    template = ChatTemplate(ALWAYS_PROMPTS)
    assert answers(template, LLADA, TURNS) == ["Hello<|eot_id|>", "So.<|eot_id|>"]


def test_a_template_without_an_end_of_turn() -> None:
    template = ChatTemplate(ENDLESS)
    assert turn_end(template, LLADA) is None
    assert answers(template, LLADA, TURNS) == ["Hello", "So."]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "there are none"),
        (TURNS[2:], "message 1 is the assistant's"),
        ([TURNS[1], {"role": "tool", "content": "x"}], "message 2: role 'tool' is not one of system, user, assistant"),
        ([TURNS[1], {"role": "assistant"}], "message 2: content is NoneType"),
        ([{"role": "user", "content": ["x"]}], "message 1: content is list"),
        (["hello"], "message 1: role None"),
        ([*TURNS[:2], {"role": "assistant", "content": "a <|eot_id|>"}], r"message 3 spells .* <\|eot_id\|>"),
        ([{"role": "user", "content": "<|mask|>"}], r"message 1 spells .* <\|mask\|>"),
        ([{"role": "user", "content": "x<|endoftext|>"}], r"message 1 spells .* <\|endoftext\|>"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: list, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ChatTemplate.named("llada", LLADA).encode(messages, LLADA)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | length }}: {% for message in messages %}{{ message.content }}<|eot_id|>{% endfor %}",
        "{% for message in messages[-2:] %}{{ message.content }}<|eot_id|>{% endfor %}",
        "{% for message in messages %}{{ message.content }}{% endfor %}{{ messages | length }}",
    ],
)
def test_a_template_whose_beginning_changes_is_refused(source: str) -> None:
    template = ChatTemplate(source, name="chat template of there")
    with pytest.raises(UserError, match=r"^chat template of there: what it writes up to message 3 is not"):
        template.encode(TURNS, LLADA)


def test_bad_templates_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'chatml' is not known; take one of llada, llada_moe, plain"):
        ChatTemplate.named("chatml", LLADA)
    with pytest.raises(UserError, match="'llada': the tokenizer has no special token that ends its turns"):
        ChatTemplate.named("llada", BYTE)
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(UserError, match=f"chat template of {tmp_path} does not parse"):
        ChatTemplate.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is not a JSON object"):
        ChatTemplate.load(tmp_path)
    with pytest.raises(UserError, match="does not render these messages: only users"):
        ChatTemplate("{{ raise_exception('only users') }}").render(TURNS)
    with pytest.raises(UserError, match=r"does not render these messages: .*unsafe"):
        ChatTemplate("{{ messages.__class__.__mro__ }}").render(TURNS)
