"""The forward part of a checkpoint's own graph: what goes in, what comes out, what is between.

Nothing here runs anything, and nothing imports TensorFlow; `converter.session` does both.
"""
