"""One output's text, as far as it may be shown: a `Detokenizer`'s text, ended by the first stop string in it.

Invariants:

- No piece of a stop string is shown before it is known whether the rest follows. What is held back is the longest end
  of the text that begins a stop string, no more; with `include_stop_str` nothing, as it would all be shown anyway.
- The first stop string is the one that ends first; of several that end there, the longest. Where tokens and
  characters were cut makes no difference.
- Nothing is dropped but the stop string and what follows it.
- Work is linear in the text: a character is looked at once for each stop string (on average: see `_Matcher`), and what
  is held back, shorter than the longest stop string, is copied at each token.

It does not search the prompt, except a character the prompt left half. Stop tokens and lengths are not its business.
"""

from collections.abc import Sequence

from miniserve.model.tokenizer.detokenizer import Detokenizer, TokenSource


class TextStream:
    """Turns one output's ids into text to show as they come, and finds out when a stop string ends it.

    Attributes:
        stop_reason: the stop string that ended the text, or None.
    """

    def __init__(
        self,
        tokenizer: TokenSource,
        *,
        prompt_ids: Sequence[int] = (),
        stop: Sequence[str] = (),
        include_stop_str: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        """Begin a text.

        Args:
            tokenizer: where the tokens' bytes come from.
            prompt_ids: the ids before the first generated one; their text is not shown.
            stop: strings that end the text, none of them empty; the text is cut before the first that is found.
            include_stop_str: cut behind it instead.
            skip_special_tokens: leave control tokens out of the text.
            min_tokens: a stop string that is complete by this many tokens is ordinary text.

        Raises:
            InvalidRequestError: an id outside the vocabulary, here or in `push`.
        """
        assert "" not in stop, "an empty stop string is everywhere; so is one in a bare string, which is no list"
        self.stop_reason: str | None = None
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens, prompt_ids=prompt_ids)
        self._matchers = [_Matcher(string) for string in stop]
        self._include_stop_str = include_stop_str
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._shown: list[str] = []
        self._held = ""
        self._ended = False

    @property
    def text(self) -> str:
        """All text shown so far. It is joined anew at each look: for the end, not for every token."""
        return "".join(self._shown)

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` allows to be shown, or "". Not to be called once the text has ended."""
        assert not self._ended, "a token came after the end of its text"
        self._num_tokens += 1
        shown = self._advance(self._detokenizer.push(token_id))
        self._shown.append(shown)
        return shown

    def finish(self) -> str:
        """End the text and return what was held back; "" if a stop string or an earlier call has ended it."""
        if self._ended:
            return ""
        # Half a character at the end becomes text only now, and may complete a stop string that contains U+FFFD.
        shown = self._advance(self._detokenizer.finish()) + self._held
        self._ended = True
        self._shown.append(shown)
        return shown

    def _advance(self, new: str) -> str:
        """Search `new`; return what may be shown of it and of the text held back, and hold back the rest."""
        pending = self._held + new
        may_end = self._num_tokens > self._min_tokens
        for end, character in enumerate(new, start=len(self._held) + 1):
            found = [matcher.stop for matcher in self._matchers if matcher.reads(character)]
            if found and may_end:
                self._ended = True
                self._held = ""
                self.stop_reason = stop = max(found, key=len)
                return pending[: end if self._include_stop_str else end - len(stop)]
        hold = 0 if self._include_stop_str else max((matcher.matched for matcher in self._matchers), default=0)
        cut = len(pending) - hold
        self._held = pending[cut:]
        return pending[:cut]


class _Matcher:
    """Looks for one stop string, a character at a time, as Knuth, Morris and Pratt do.

    `matched` is how much of the stop string's beginning the text ends with, the whole of it not counted. It grows by at
    most one a character, and each step of the inner loop makes it smaller: so on average there is at most one.
    """

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        # _shorter[k]: if the text ends with k characters of the beginning, the next smaller number it ends with. The
        # string is its own text here: each entry needs only those before it.
        self._shorter = [0, 0]
        for character in stop[1:]:
            self.reads(character)
            self._shorter.append(self.matched)
        self.matched = 0

    def reads(self, character: str) -> bool:
        """Take the text's next character; return whether the text now ends with the whole stop string."""
        while self.matched and self.stop[self.matched] != character:
            self.matched = self._shorter[self.matched]
        if self.stop[self.matched] == character:
            self.matched += 1
        if self.matched < len(self.stop):
            return False
        self.matched = self._shorter[self.matched]
        return True
