"""The layers of a graph, and the tensors in which each of them begins and ends.

`steps` tells what is done to a tensor of units until it is one tensor again, `chains` follows what
variables make through such steps, `cuts` tells what of a variable is taken, `masks` finds the rows
that a loop throws away, `trials` leaves out what is computed for nothing, and `read` puts the
layers together.
"""

from converter.structure.layers.layer import Activation, Layer, LayerKind, Normalisation, Units
from converter.structure.layers.read import layers

__all__ = ["Activation", "Layer", "LayerKind", "Normalisation", "Units", "layers"]
