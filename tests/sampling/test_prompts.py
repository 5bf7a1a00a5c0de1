"""Where prompts come from, what canvas each becomes, and one line for whatever cannot be one."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from lit_llada.errors import UserError
from lit_llada.sampling.prompts import Prompt, make_canvases, parse_prompts, read_prompts
from lit_llada.text.chat_template import ChatTemplate
from lit_llada.text.specials import Specials
from lit_llada.text.tokenizer import Tokenizer

T = Tokenizer.byte()
IDS = Specials(T.mask_id, T.eos_id)
M = T.mask_id


def test_words_stream_and_file_come_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("two\n\nthree\n"))
    (tmp_path / "file").write_text("four\n")
    assert [p.text for p in read_prompts(["one", "-"], str(tmp_path / "file"))] == ["one", "two", "three", "four"]


def test_jsonl_has_prompts_and_conversations() -> None:
    talk = [{"role": "user", "content": "hi"}]
    text = '{"prompt": "a\\nb", "id": 7}\n\n{"messages": [{"role": "user", "content": "hi"}]}\n'
    for name in ("x.jsonl", "the standard input"):
        first, second = parse_prompts(text, name)
        assert (first.text, first.given, second.text, second.given) == ("a\nb", "a\nb", "hi", talk)
    assert [p.text for p in parse_prompts("{braces} are text\n", "x.txt")] == ["{braces} are text"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "x.jsonl is empty"),
        (" \n\n", "x.jsonl is empty"),
        ('{"prompt": "a"}\nnot json\n', "x.jsonl, record 2 is not a JSON object"),
        ("[1]", "x.jsonl, record 1 is not a JSON object"),
        ('{"text": "a"}', "x.jsonl, record 1 has neither a text 'prompt' nor a list 'messages'"),
        ('{"messages": "a"}', "neither a text 'prompt' nor a list 'messages'"),
    ],
)
def test_wrong_files_are_named(text: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        parse_prompts(text, "x.jsonl")


def test_unreadable_files_and_no_prompt_at_all(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, reason in (("gone", "No such file"), (".", "Is a directory"), ("binary", "not UTF-8")):
        with pytest.raises(UserError, match=f"cannot be read: .*{reason}"):
            read_prompts([], str(tmp_path / name))
    with pytest.raises(UserError, match="there is no prompt; give one, or --file FILE, or -"):
        read_prompts([], None)


def test_a_continuation_is_the_prompt_and_masks() -> None:
    assert make_canvases([Prompt("ab"), Prompt("c")], T, IDS, new_tokens=3) == [[97, 98, M, M, M], [99, M, M, M]]


def test_a_gap_is_where_it_is_written_and_as_long_as_it_says() -> None:
    rows = make_canvases(
        [Prompt("a[...]b[...2]"), Prompt("[...1]c")], T, IDS, new_tokens=3, infill=True, block_length=8
    )
    assert rows == [[97, M, M, M, 98, M, M], [M, 99]]


def test_a_template_writes_texts_and_conversations() -> None:
    plain = ChatTemplate.named("plain", T)
    talk = [{"role": "user", "content": "hi"}]
    rows = make_canvases([Prompt("hi"), Prompt("hi", talk)], T, IDS, new_tokens=1, template=plain)
    assert rows[0] == rows[1]
    assert T.decode(rows[0], mask="?", eos="|") == "user:\nhi|assistant:\n?"


@pytest.mark.parametrize(
    ("prompts", "options", "line"),
    [
        ([Prompt("a"), Prompt("")], {}, "prompt 2 is empty"),
        ([Prompt("")], {"template": ChatTemplate.named("plain", T)}, "prompt 1 is empty"),
        ([Prompt("a <|mask|>")], {}, r"prompt 1 spells the mask token <\|mask\|>; mark a gap with \[...\]"),
        ([Prompt("abc")], {"context": 6}, "prompt 1: 3 tokens and 4 new ones exceed the context of 6"),
        ([Prompt("abc[...]")], {"context": 6, "infill": True}, "prompt 1: 7 tokens with its gaps exceed the context"),
        ([Prompt("a")], {"block_length": 3}, "block_length 3 does not divide the 4 new tokens of prompt 1"),
        ([Prompt("a")], {"infill": True}, "prompt 1 has no gap; mark one with"),
        ([Prompt("a[...0]")], {"infill": True}, "prompt 1: its gaps have no tokens"),
        ([Prompt("a", [{"role": "user", "content": "a"}])], {}, "prompt 1 is a conversation; add --chat"),
        (
            [Prompt("<|endoftext|>")],
            {"template": ChatTemplate.named("plain", T)},
            "prompt 1: message 1 spells the special token",
        ),
    ],
)
def test_what_makes_no_canvas_is_told_by_its_number(prompts: list[Prompt], options: dict, line: str) -> None:
    with pytest.raises(UserError, match=line):
        make_canvases(prompts, T, IDS, new_tokens=4, **options)
