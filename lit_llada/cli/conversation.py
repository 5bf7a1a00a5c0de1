"""A conversation at a terminal, its canvas in sight while it is filled; elsewhere plain lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from lit_llada.cli.options import add_options, given
from lit_llada.cli.parser import Parser
from lit_llada.cli.sample import CUT_OFF, count, measured, piece
from lit_llada.cli.screen import Reader, watch
from lit_llada.errors import UserError
from lit_llada.files import writing
from lit_llada.sampling.canvas import lay_out
from lit_llada.sampling.film import write_film
from lit_llada.sampling.generate import generate
from lit_llada.sampling.settings import Settings
from lit_llada.sampling.trace import Recorder, Trace
from lit_llada.text.chat_template import ChatTemplate, Message

if TYPE_CHECKING:
    from lit_llada.checkpoint.load import Checkpoint

HELP = """\
/set NAME VALUE   change an option, such as /set temperature 0.7
/plan             all options; * marks what is not the usual value
/system TEXT      the system's message; without a text, none
/undo, /reset     forget the last turn, or all of them
/film PATH        the film of the last answer, .html or .gif
/save PATH        the conversation as JSONL
/quit             leave, as Ctrl-D does; Ctrl-C stops an answer"""


class Chat:
    """A conversation with a checkpoint.

    Args:
        checkpoint: with a tokenizer.
        template: how a conversation becomes tokens.
        settings: everything that decides an answer.
        system: the system's message.
        console: where to.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        template: ChatTemplate,
        settings: Settings,
        *,
        system: str | None = None,
        console: Console | None = None,
    ) -> None:
        assert checkpoint.tokenizer is not None, "the command line has asked for one"
        self.net, self.tokenizer, self.template = checkpoint.net, checkpoint.tokenizer, template
        self.specials, self.settings, self.context = checkpoint.specials(template), settings, checkpoint.context
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.system, self.messages = system, list[Message]()
        self.trace: Trace | None = None  # of the last answer, and what was asked
        self.asked = ""

    # ------------------------------------------------------------------ the loop

    def loop(self) -> None:
        """Read lines and answer them until the end of the input or /quit."""
        talks = sys.stdin.isatty()
        if talks:
            with suppress(ImportError):
                import readline  # noqa: F401  (gives the prompt a history and its keys)
            self.say("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves")
        read = _reader(talks)
        while True:
            try:
                line = read()
                if line.startswith("/"):
                    if line.split()[0] == "/quit":
                        return
                    self.command(line)
                elif line.strip():
                    self.answer(line)
            except UserError as error:
                self.console.print(Text(f"error: {error}", style="red"))
            except KeyboardInterrupt:
                self.say("\nnothing is running; Ctrl-D or /quit leaves")
            except EOFError:
                if talks:
                    self.console.print()
                return

    def answer(self, text: str) -> None:
        """Write the next answer; Ctrl-C ends it with what is settled by then.

        Raises:
            UserError: the conversation does not fit, or spells a special token. The message is then forgotten.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        canvas, start = self._canvas(asked)
        reader = Reader(self.tokenizer, self.specials, self.settings.plan, start)
        seeds = torch.tensor([self.settings.prompt_seed(len(asked) // 2)])
        predictor = self.settings.predictor(self.net, self.specials.mask)
        states = generate(predictor, canvas, self.specials, self.settings.plan, seeds=seeds)
        recorder = Recorder(states, self.specials.mask)
        began = time.perf_counter()
        state, stopped = watch(recorder, reader, self.console)
        took, self.trace = time.perf_counter() - began, recorder.traces[0]
        self.asked, ids = text, reader.settled(state)
        if ids or not stopped:
            self.messages = [*asked, {"role": "assistant", "content": self.tokenizer.decode(ids)}]
        ended = int(state.real[0].sum()) > start + len(ids)
        note = "stopped" if stopped else "" if ended else CUT_OFF
        self.say(measured(len(ids), int(state.forwards[0]), took, note) + "\n")

    def command(self, line: str) -> None:
        """Do what ``/name ...`` says.

        Raises:
            UserError: no such command, or not with these words.
        """
        name, _, rest = line[1:].strip().partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "reset": self._reset,
            "undo": self._undo,
            "set": self._set,
            "plan": lambda _: self.say(self.settings.in_words()),
            "film": self._film,
            "save": self._save,
            "system": self._system,
        }
        if name not in commands:
            raise UserError(f"/{name} is not a command; /help lists them")
        commands[name](rest.strip())

    def say(self, text: str) -> None:
        """A remark of the program, not of the model."""
        self.console.print(Text(text, style="dim"))

    # ------------------------------------------------------------------ an answer

    def _canvas(self, messages: list[Message]) -> tuple[Tensor, int]:
        """The conversation with masks behind it, ``[1, L]``, and where they begin."""
        ids = self.template.encode(self._with_system(messages), self.tokenizer, add_generation_prompt=True).ids
        new, block = self.settings.new_tokens, self.settings.plan.block_length
        if self.context and len(ids) + new > self.context:
            raise UserError(
                f"the conversation has {len(ids)} tokens, and {new} new ones exceed the context of {self.context}; "
                "/undo forgets its last turn, /reset all of it"
            )
        canvas, _ = lay_out([ids], new, self.specials, block_length=block)
        return canvas.to(next(self.net.parameters()).device), len(ids)

    # ------------------------------------------------------------------ commands

    def _help(self, _: str) -> None:
        self.say(HELP)

    def _reset(self, _: str) -> None:
        self.messages = []
        self.say("the conversation begins anew")

    def _undo(self, _: str) -> None:
        if not self.messages:
            raise UserError("there is no turn to forget")
        self.messages = self.messages[:-2]
        self.say(f"the last turn is forgotten; {count(len(self.messages) // 2, 'turn')} left")

    def _set(self, words: str) -> None:
        name, _, value = words.partition(" ")
        if not value:
            raise UserError("/set takes a name and a value, such as /set temperature 0.7; /plan lists the names")
        parser = Parser()
        add_options(parser)
        self.settings = self.settings.changed(**given(parser.parse_args([f"--{name}={value.strip()}"]).as_dict()))
        self.say(f"{name} is {value.strip()}")

    def _film(self, path: str) -> None:
        if not path or self.trace is None:
            raise UserError("/film takes a path, .html or .gif, once there is an answer")
        write_film(path, {self.asked: self.trace}, piece(self.tokenizer))
        self.say(f"the film of the last answer is in {path}")

    def _save(self, path: str) -> None:
        if not path or not self.messages:
            raise UserError("/save takes a path, once there is an answer")
        with writing(Path(path)) as file:
            file.write(json.dumps({"messages": self._with_system(self.messages)}, ensure_ascii=False) + "\n")
        self.say(f"the conversation is in {path}")

    def _system(self, text: str) -> None:
        self.system = text or None
        self.say(f"the system says: {text}" if text else "the system says nothing")

    def _with_system(self, messages: list[Message]) -> list[Message]:
        return messages if self.system is None else [{"role": "system", "content": self.system}, *messages]


def _reader(talks: bool) -> Callable[[], str]:
    """What gives the next line, or raises EOFError."""
    if talks:
        return lambda: input("> ")
    lines = iter(sys.stdin)

    def read() -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line.rstrip("\n")

    return read
