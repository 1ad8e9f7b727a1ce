"""The notation: axes as expressions over widths, written out, and what has the axes of another."""
