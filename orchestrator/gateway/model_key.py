"""Find the ``model`` a request asks for, in as little of its body as has come; nothing else is read."""

from __future__ import annotations

import json
import re

MOST_MODEL_BYTES = 512
MOST_KEY_BYTES = 32
"""Of a key: ``model`` with every letter escaped has 30, and a quote goes before it."""

_STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_PLAIN = re.compile(rb'[^"{}\[\],:]*+')
_PART = re.compile(
    rb'\r\ncontent-disposition:[^\r\n]*;[ \t]*name="?model"?[ \t]*(?:;[^\r\n]*)?\r\n'
    rb"(?:[^\r\n]+\r\n)*\r\n([^\r\n]{0,512})\r\n",
    re.IGNORECASE,
)


class ModelKey:
    """Reads the top level of a JSON object until its ``model``, across pieces, each byte once.

    ``name`` is the model once found; ``span`` is where its text stands, quotes included;
    ``done`` says that looking further is of no use. Of a model that is named twice readers take the
    one or the other; ``to_the_end`` of the object no second one is let through: then ``name`` is None.
    """

    __slots__ = (
        "_at",
        "_depth",
        "_found",
        "_key",
        "_start",
        "_wants_key",
        "done",
        "name",
        "span",
        "to_the_end",
    )

    def __init__(self, *, to_the_end: bool = False) -> None:
        self.to_the_end = to_the_end
        self._found = 0
        """Keys that say ``model``, however they are spelled."""
        self._at = 0
        self._depth = 0
        self._start = -1
        """Where the string being read begins; -1 outside of one."""
        self._key = b""
        self._wants_key = False
        self.done = False
        self.name: str | None = None
        self.span = (0, 0)

    def look(self, body: bytes | bytearray) -> bool:
        """Look in ``body``, all that has come so far; return whether the search is over.

        >>> key = ModelKey()
        >>> key.look(b'{"stream": true, "mod'), key.look(b'{"stream": true, "model": "llama", "mess')
        (False, True)
        >>> key.name
        'llama'
        """
        size = len(body)
        while not self.done:
            if self._start >= 0:
                if not self._end_string(body):
                    return False
                continue
            found = _PLAIN.match(body, self._at)
            at = found.end() if found else self._at
            if self._depth == 0 and body[self._at : at].strip():
                return self._give_up()  # no object: a bare word or a number
            self._at = at
            if at == size:
                return False
            self._step(body[at])
        return True

    def _step(self, byte: int) -> None:
        """Take one of the bytes that structure JSON."""
        if byte == 0x22:  # "
            self._start = self._at
        elif byte in b"{[":
            self._depth += 1
            self._wants_key = self._depth == 1
            if self._depth == 1 and byte == 0x5B:
                self._give_up()
        elif byte in b"}]":
            self._depth -= 1
            if self._depth <= 0:
                self._give_up()
        elif byte == 0x2C and self._depth == 1:  # ,
            self._wants_key, self._key = True, b""
        elif byte == 0x3A and self._depth == 1:  # :
            self._wants_key = False
            self._count()
        if not self.done:
            self._at += 1

    def _end_string(self, body: bytes | bytearray) -> bool:
        """Go on to the end of the string being read; False where it has not come yet."""
        begin = max(self._at, self._start + 1)
        found = _STRING_REST.match(body, begin)
        end = found.end() if found else begin
        self._at = end
        if end >= len(body) or body[end] != 0x22:
            return False
        start, self._start = self._start, -1
        self._at = end + 1
        if self._depth == 0:
            self._give_up()
        elif self._depth == 1 and self._wants_key:
            self._key = bytes(body[start + 1 : end]) if end - start <= MOST_KEY_BYTES else b""
        elif self._depth == 1 and self._key == b"model":
            self._take(body, start, end + 1)
        return True

    def _count(self) -> None:
        """Take note of a key, its escapes undone, that says ``model``."""
        if b"\\" in self._key:
            try:
                self._key = str(json.loads(b'"%b"' % self._key)).encode("utf-8", "replace")
            except ValueError:  # no JSON, which every reader will say
                self._key = b""
        self._found += self._key == b"model"
        if self._found > 1:
            self.name = None
            self._give_up()

    def _take(self, body: bytes | bytearray, start: int, end: int) -> None:
        self.done = not self.to_the_end
        if end - start > MOST_MODEL_BYTES:
            return
        try:
            self.name = json.loads(bytes(body[start:end]))
            self.span = (start, end)
        except ValueError:  # a bad escape, or no UTF-8
            self.name = None

    def _give_up(self) -> bool:
        self.done = True
        return True


def model_of_form(body: bytes | bytearray) -> str | None:
    r"""Return the ``model`` field of a multipart form, None where it has not come.

    >>> form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--x--'
    >>> model_of_form(form)
    'whisper'
    """
    found = _PART.search(body)
    return found[1].decode("utf-8", "replace") if found else None
