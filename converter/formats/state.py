"""The `checkpoint` file of a directory, which names the checkpoints that TensorFlow kept there.

It is a CheckpointState in protobuf's text format.

References:
    tensorflow/python/training/checkpoint_state.proto;
    https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from converter.errors import InputError

_CURRENT = "model_checkpoint_path"
_ALL = "all_model_checkpoint_paths"

# Thousands of paths take kilobytes.
_MAX_BYTES = 16 << 20

_TOKEN = re.compile(
    rb"""\s+ | \#[^\n]*
    | (?P<string> "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' )
    | (?P<word> [\w.+-]+ )
    | (?P<mark> [:;,\[\]{}<>] )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(
    rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|(.))", re.DOTALL
)
_LETTERS = dict(zip(b"abfnrtv", b"\a\b\f\n\r\t\v", strict=True))


def read_state(path: Path) -> list[str]:
    """Return the paths that a `checkpoint` file holds, from the oldest to the current one.

    They are as they were written: absolute or relative, and perhaps of another machine. Of a file
    that is damaged, what comes before the damage counts.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES)
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror})") from None
    fields = _fields(text)
    current = fields.get(_CURRENT, [])[-1:]
    return [name for name in fields.get(_ALL, []) if name not in current] + current


def state_text(*names: str) -> str:
    """Return the text of a `checkpoint` file.

    Args:
        names: paths of checkpoints relative to the file's directory, from the oldest to the
            current one.
    """
    lines = [f'{_CURRENT}: "{_escape(names[-1])}"']
    lines += [f'{_ALL}: "{_escape(name)}"' for name in names]
    return "".join(f"{line}\n" for line in lines)


def _fields(text: bytes) -> dict[str, list[str]]:
    """Return the string fields of a message in text format, but not those of messages within."""
    fields: dict[str, list[str]] = {}
    name, parts, depth, position = "", list[bytes](), 0, 0

    def close() -> None:
        # Strings side by side are one.
        if parts:
            value = b"".join(parts).decode("utf-8", "surrogateescape")
            fields.setdefault(name, []).append(value)
            parts.clear()

    while match := _TOKEN.match(text, position):
        position = match.end()
        token = match[0]
        if match.lastgroup == "string":
            if depth == 0:
                parts.append(_ESCAPE.sub(_unescape, token[1:-1]))
        elif match.lastgroup is not None:
            close()
            if match.lastgroup == "word":
                name = token.decode("ascii")
            depth += (token in (b"{", b"<")) - (token in (b"}", b">"))
    close()
    return fields


def _unescape(match: re.Match[bytes]) -> bytes:
    octal, hexadecimal, point, letter = match.groups()
    if letter:
        return bytes([_LETTERS.get(letter[0], letter[0])])
    if point:
        number = int(point[1:], 16)
        # What is no character becomes a question mark.
        return chr(number).encode("utf-8", "replace") if number <= sys.maxunicode else b"?"
    return bytes([int(octal or hexadecimal, 8 if octal else 16) & 0xFF])


def _escape(name: str) -> str:
    # Octal, as every protobuf has read it; the newest alone also reads UTF-8 as it is.
    return "".join(
        f"\\{chr(byte)}" if byte in b"\\\"'" else chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"
        for byte in name.encode("utf-8", "surrogateescape")
    )
