"""Layers as other frameworks hold them: what variables are of which layer, and how they map."""
