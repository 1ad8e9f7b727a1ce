"""Layouts that are known by name, where there is no graph."""

from converter.structure.cells.by_name import ByName, by_name, labels_by_name

__all__ = ["ByName", "by_name", "labels_by_name"]
