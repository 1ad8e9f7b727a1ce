"""The graph of a resized model: what the model's own code would build at the new sizes."""

from __future__ import annotations

from converter.regraph.factors import Rescaled
from converter.regraph.rewrite import Regraphed, regraph

__all__ = ["Regraphed", "Rescaled", "regraph"]
