"""`miniserve chat` on a real terminal: several turns, /reset, Ctrl-C in the middle of a reply."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

COMMAND = [sys.executable, "-m", "miniserve", "chat"]


def _own_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A chat in a pseudo-terminal: `send` types a line, `until` reads what appears."""

    def __init__(self, *arguments):
        self.primary, secondary = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=secondary, stdout=secondary, stderr=secondary, start_new_session=True,
            preexec_fn=_own_terminal,  # noqa: PLW1509, Ctrl-C needs a controlling terminal, and no thread runs here
        )  # fmt: skip
        os.close(secondary)
        self.seen = ""

    def send(self, text):
        os.write(self.primary, text.encode())

    def until(self, text, timeout=60):
        """All output up to and including `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            ready, _, _ = select.select([self.primary], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not appear within {timeout} s; seen: {self.seen[-500:]!r}"
            self.seen += os.read(self.primary, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def prompt(self):
        """Wait for the prompt, which is printed a moment before it listens."""
        self.until("> ")
        time.sleep(0.5)

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.primary)


@pytest.fixture
def terminal(smollm2_gguf):
    made = Terminal("--max-tokens", "40")
    yield made
    made.close()


def test_a_conversation(terminal):
    terminal.until("> ")
    terminal.send("My name is Ada. Please remember it.\n")
    terminal.until("tokens/s]")
    terminal.send("What is my name?\n")
    assert "Ada" in terminal.until("tokens/s]").split("What is my name?")[-1]
    terminal.send("/reset\n")
    terminal.until("(forgotten)")
    terminal.send("What is my name?\n")
    assert "Ada" not in terminal.until("tokens/s]").split("What is my name?")[-1]
    terminal.send("/nonsense\n")
    terminal.until("unknown command /nonsense")
    terminal.send("/exit\n")
    assert terminal.process.wait(timeout=10) == 0


def test_interrupt_stops_the_reply_and_keeps_the_session(smollm2_gguf):
    terminal = Terminal("--max-tokens", "2000")
    try:
        terminal.until("> ")
        terminal.send("Write a very long story about a dragon.\n")
        terminal.until("dragon.")
        terminal.until(" ")
        time.sleep(1.5)
        terminal.send("\x03")
        terminal.until("(stopped)")
        terminal.prompt()
        terminal.send("\x03")  # at the prompt: nothing happens
        terminal.until("> ")
        terminal.send("/reset\n")
        terminal.until("(forgotten)")
        terminal.send("What is the capital of France?\n")
        terminal.until("Paris")
        terminal.prompt()
        terminal.send("\x04")
        assert terminal.process.wait(timeout=10) == 0
    finally:
        terminal.close()


def test_piped_input_without_a_terminal(smollm2_gguf):
    result = subprocess.run(
        [*COMMAND, "--max-tokens", "40"],
        input="What is the capital of France?\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0
    assert "Paris" in result.stdout
    assert ">" not in result.stdout
