"""Reads JSON whose layout is known, from files that are not to be trusted.

`json.loads` recurses, keeps the last of two equal keys, and builds whatever a file holds: three
bytes, `[],`, become eighty in memory. Here the reader says what it expects, anything else is an
error, and nothing else is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NoReturn

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\[\]{},]+')
_decode = json.JSONDecoder().raw_decode


class FlatJSON:
    """A position in a JSON text. Every method raises ValueError where the text is not as asked."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._skip_space()

    def members(self) -> Iterator[str]:
        """Yield the keys of an object; the value must be taken before the next key is asked for."""
        seen: set[str] = set()
        self._expect("{")
        if self._accept("}"):
            return
        while True:
            key = self.string()
            if key in seen:
                raise ValueError(f"has the key {key!r} twice")
            seen.add(key)
            self._expect(":")
            yield key
            if self._accept("}"):
                return
            self._expect(",")

    def string(self) -> str:
        """Take a string that is valid Unicode."""
        if not self._text.startswith('"', self._at):
            self._fail("a string")
        try:
            value, self._at = _decode(self._text, self._at)
        except json.JSONDecodeError as error:
            raise ValueError(f"has {error.msg} at character {error.pos}") from None
        self._skip_space()
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError(f"holds the text {value!r}, which is no valid Unicode") from None
        return str(value)

    def strings(self) -> dict[str, str]:
        """Take an object whose values are strings."""
        return {key: self.string() for key in self.members()}

    def match(self, pattern: re.Pattern[str], expected: str) -> str:
        """Take what a pattern matches; `expected` says in words what that is."""
        found = pattern.match(self._text, self._at)
        if found is None:
            self._fail(expected)
        self._at = found.end()
        self._skip_space()
        return found.group()

    def skip(self) -> None:
        """Pass over a value of any kind and depth, without building it."""
        depth = 0
        while True:
            character = self._text[self._at : self._at + 1]
            if character == '"':
                self.string()
            elif character and character in "[{":
                depth += 1
                self._at += 1
            elif character and depth and character in "]},":
                depth -= character != ","
                self._at += 1
            else:
                self.match(_PLAIN, "a value")
            if not depth:
                break
        self._skip_space()

    def end(self) -> None:
        """Check that nothing follows."""
        if self._at < len(self._text):
            self._fail("its end")

    def _accept(self, character: str) -> bool:
        found = self._text.startswith(character, self._at)
        if found:
            self._at += 1
            self._skip_space()
        return found

    def _expect(self, character: str) -> None:
        if not self._accept(character):
            self._fail(f"{character!r}")

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._at)
        if found is not None:
            self._at = found.end()

    def _fail(self, expected: str) -> NoReturn:
        found = self._text[self._at : self._at + 40]
        what = repr(found) if found else "the end"
        raise ValueError(f"has {what} at character {self._at} instead of {expected}")
