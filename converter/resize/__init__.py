"""Resizing: the maps of widths applied to every axis of every variable."""
