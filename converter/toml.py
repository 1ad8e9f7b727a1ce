"""Reads TOML files that people write."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from converter.errors import UsageError


def read_toml(path: Path, what: str) -> dict[str, object]:
    """Read a TOML file.

    Args:
        path: the file.
        what: what it is to be, for messages: `recipe`.

    Raises:
        UsageError: it cannot be read, or is no TOML, with the line.
    """
    # Imported where a file is read: a command is to start at once.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        table: dict[str, object] = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise UsageError(f"{path}: the {what} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is no UTF-8, which TOML is") from None
    except tomllib.TOMLDecodeError as error:
        said, line = str(error), ""
        if match := re.fullmatch(r"(?s)(.*) \(at line (\d+), column \d+\)", said):
            said, line = match[1], f":{match[2]}"
        raise UsageError(f"{path}{line}: {said[:1].lower()}{said[1:]}") from None
    except RecursionError:
        raise UsageError(f"{path}: its values are nested too deep") from None
    return table
