"""What a variable is by its name: slot, average, step ... Scopes.

TensorFlow writes nothing but names, so a role is inferred from them, and only where the rest of the
checkpoint agrees: a slot needs the variable that it belongs to, of the right shape. What merely
looks like a slot is a model variable. docs/names.md lists the rules.
"""

from __future__ import annotations

from converter.names.role import MODEL, Kind, Role

__all__ = ["MODEL", "Kind", "Role"]
