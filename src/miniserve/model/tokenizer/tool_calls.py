"""Calls of functions in a text, as it comes: what is said besides them, and each call's name and arguments.

The form is core/grammar.py's, which decoding is held to. Invariants:

- However the text is cut into pieces, what comes out joins to the same.
- Text and arguments are passed on as they come. Held back is only an end that may begin a marker.
- A call that the output's end cuts is given as far as it has come: its arguments are then the beginning of JSON, and
  without a whole name nothing is given. `inside` tells that it was cut.

Arguments are parsed only where a cut leaves it open whether a last brace is theirs. What comes behind a call and
begins no other one is text; if the output ends while that is open, it is nothing.
"""

import json
from typing import NamedTuple

from miniserve.core.grammar import CALL_ARGUMENTS, CALL_BEGIN, CALL_BETWEEN, CALL_END, CALL_NAME


class CallPart(NamedTuple):
    """The next part of call number `call`, from 0: `name` with its first one, which may have no arguments yet."""

    call: int
    name: str | None
    arguments: str


class Heard(NamedTuple):
    """What a piece of text adds: text, and parts of calls, at most one each."""

    text: str
    calls: list[CallPart]

    def then(self, later: "Heard") -> "Heard":
        """Both as one."""
        calls = {part.call: part for part in self.calls}
        for part in later.calls:
            earlier = calls.get(part.call)
            calls[part.call] = (
                part if earlier is None else earlier._replace(arguments=earlier.arguments + part.arguments)
            )
        return Heard(self.text + later.text, list(calls.values()))


class ToolCallReader:
    """Reads one output.

    Attributes:
        num_calls: how many calls have begun, their names known.
        inside: whether a call has begun and not ended.
    """

    def __init__(self) -> None:
        self.num_calls, self.inside = 0, False
        self._held = ""
        self._arguments = ""  # of the last call
        self._marker = CALL_BEGIN  # what is waited for

    def push(self, text: str) -> Heard:
        """Take the next piece of text."""
        pending, said = self._held + text, ""
        names: dict[int, str] = {}
        arguments: dict[int, str] = {}
        while True:
            before, found, after = pending.partition(self._marker)
            if not found:
                before, after = _split_off_beginning(pending, self._marker)
            if self._marker == CALL_END:
                arguments[self.num_calls - 1] = before
                self._arguments += before
            elif self._marker != CALL_ARGUMENTS:
                said += before
            elif found:
                names[self.num_calls] = before.removeprefix(CALL_NAME)
                arguments[self.num_calls] = self._arguments = ""
                self.num_calls += 1
            else:
                after = pending  # a name is given whole
            if not found:
                self._held = after
                break
            self._marker, pending = _NEXT[self._marker], after
            self.inside = self._marker in (CALL_ARGUMENTS, CALL_END)
        parts = [CallPart(index, names.get(index), each) for index, each in arguments.items()]
        return Heard(said, [part for part in parts if part.name is not None or part.arguments])

    def finish(self) -> Heard:
        """The output has ended: what was held back."""
        held, self._held = self._held, ""
        if self._marker == CALL_BEGIN:
            return Heard(held, [])
        theirs = self._marker == CALL_END and held and not _is_json(self._arguments)
        return Heard("", [CallPart(self.num_calls - 1, None, held)] if theirs else [])


# After a call comes the next one, on a line of its own.
_NEXT = {
    CALL_BEGIN: CALL_ARGUMENTS,
    CALL_BETWEEN + CALL_BEGIN: CALL_ARGUMENTS,
    CALL_ARGUMENTS: CALL_END,
    CALL_END: CALL_BETWEEN + CALL_BEGIN,
}


def _split_off_beginning(text: str, marker: str) -> tuple[str, str]:
    """Split a text so that its second part is the longest end that the marker begins with."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return text[:-length], text[-length:]
    return text, ""


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
