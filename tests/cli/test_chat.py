"""A conversation as a user has it: in a pseudo-terminal, and through a pipe."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lit_llada.cli.screen import printable

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
COMMAND = [sys.executable, "-m", "lit_llada", "chat"]


class Terminal:
    """``lit-llada chat`` in a pseudo-terminal."""

    def __init__(self, *words: str) -> None:
        mine, its = pty.openpty()
        self.fd, self.text = mine, ""
        self.process = subprocess.Popen(
            [*COMMAND, *words], stdin=its, stdout=its, stderr=its, env=ENVIRONMENT, start_new_session=True
        )
        os.close(its)

    def until(self, pattern: str, timeout: float = 120) -> str:
        """Read until ``pattern`` comes, and take everything up to its end."""
        end = time.monotonic() + timeout
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.text!r}"
            if select.select([self.fd], [], [], 1.0)[0]:
                try:
                    self.text += os.read(self.fd, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    assert re.search(pattern, self.text), f"ended without {pattern!r}: {self.text!r}"
        taken, self.text = self.text[: found.end()], self.text[found.end() :]
        return taken

    def interrupt_until(self, pattern: str) -> None:
        """Ctrl-C, again every second: CPython loses one that comes between the prompt and the wait for a key."""
        for _ in range(60):
            self.process.send_signal(signal.SIGINT)
            with suppress(AssertionError):
                self.until(pattern, timeout=1)
                return
        raise AssertionError(f"no {pattern!r} in {self.text!r}")

    def type(self, line: str) -> None:
        os.write(self.fd, f"{line}\n".encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def terminal(run_file: Path) -> Iterator[Terminal]:
    talk = Terminal(str(run_file), "--preset", "official", "--new_tokens", "8")
    yield talk
    talk.close()


def test_a_session_in_a_terminal(terminal: Terminal) -> None:
    terminal.until("/help lists the commands")
    terminal.until("> ")
    terminal.type("hello")
    shown = terminal.until("8 forwards, .* a second")
    assert "░" in shown  # the canvas was in sight
    assert "\x1b[2m" in shown  # and something on it was dim
    terminal.until("> ")

    terminal.type("/set new_tokens 4000")
    terminal.until("new_tokens is 4000")
    terminal.until("> ")
    terminal.type("again")
    terminal.until("░")
    terminal.process.send_signal(signal.SIGINT)
    terminal.until(r"\d+ forwards?, .*stopped")
    terminal.until("> ")

    terminal.type("/nonsense")
    terminal.until("error: /nonsense is not a command")
    terminal.until("> ")
    terminal.interrupt_until("nothing is running")
    terminal.until("> ")
    os.write(terminal.fd, b"\x04")  # Ctrl-D
    assert terminal.process.wait(60) == 0


def test_a_session_through_a_pipe(run_file: Path, tmp_path: Path) -> None:
    lines = "hello\n/nonsense\n/save talk.jsonl\n/quit\nnever read\n"
    words = [*COMMAND, str(run_file), "--new_tokens", "32"]
    done = subprocess.run(
        words, input=lines, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "error: /nonsense is not a command" in done.stdout
    messages = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert messages[0] == {"role": "user", "content": "hello"}
    assert printable(messages[1]["content"]) in done.stdout.replace("\r", "")
    assert "never read" not in done.stdout
    assert "taking chat template 'plain'" in done.stderr
