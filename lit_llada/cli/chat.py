"""``lit-llada chat``: converse with a checkpoint at a terminal."""

from __future__ import annotations

from lit_llada.cli.checkpoint_options import checkpoint_parser, load, read_options, template_for

CHAT = """\
Converse at a terminal, and watch the canvas being filled.

  lit-llada chat CHECKPOINT
  lit-llada chat CHECKPOINT --system 'Answer in one word.' --preset official --new_tokens 64
  lit-llada chat CHECKPOINT --template plain        a base model with the tokenizer of bytes
  printf 'Hello\\n/save talk.jsonl\\n' | lit-llada chat CHECKPOINT

Guesses are dim until they are committed. Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands."""


def chat(words: list[str]) -> int:
    """``lit-llada chat CHECKPOINT``."""
    parser = checkpoint_parser("chat", "", CHAT)
    parser.add_argument("--system", type=str | None, default=None, help="the system's message")
    options = read_options(parser, words)
    checkpoint, settings = load(options)
    from lit_llada.cli.conversation import Chat

    Chat(checkpoint, template_for(options, checkpoint), settings, system=options["system"]).loop()
    return 0
