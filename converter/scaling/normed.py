from __future__ import annotations
def normed(checkpoint, structure):
    return ()
