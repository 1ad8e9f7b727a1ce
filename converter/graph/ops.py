"""What ops do, as far as anything here asks: the sets that the readers of graphs share.

What only one reader asks stands with that reader, made of these sets where it can be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache


def ops(names: str) -> frozenset[str]:
    """Return the ops that are named, with spaces between them."""
    return frozenset(names.split())


# -- values that are held, and values that come from outside -----------------------------------

VARIABLES = ops("Variable VariableV2 VarHandleOp AutoReloadVariable")
"""What holds the value of a variable that a checkpoint may have."""

ASSIGNS = ops("Assign AssignVariableOp")
UPDATES = ASSIGNS | ops("AssignAdd AssignSub AssignAddVariableOp AssignSubVariableOp")
"""What writes into a variable, or adds to it; optimizers aside."""

SAVES = ops("Save SaveSlices SaveV2")
RESTORES = ops("Restore RestoreSlice RestoreV2")
UNSLICED = ops("Save Restore")
"""Those of them that take a prefix and keys only; the others take slices behind the keys."""

PLACEHOLDERS = ops("Placeholder PlaceholderV2 PlaceholderWithDefault")
DEQUEUES = ops("""
    IteratorGetNext IteratorGetNextSync QueueDequeue QueueDequeueV2 QueueDequeueMany
    QueueDequeueManyV2 QueueDequeueUpTo QueueDequeueUpToV2 InfeedDequeue InfeedDequeueTuple
    ReaderRead ReaderReadV2 ReaderReadUpTo ReaderReadUpToV2 Unstage PyFunc PyFuncStateless
    EagerPyFunc
    """)
"""What hands data to a graph without a placeholder; each of its outputs can be fed instead."""

TABLES = re.compile(r"(Mutable)?(Dense)?HashTable(OfTensors)?(V[234])?|AnonymousHashTable")
FILLS = re.compile(r"InitializeTable(FromTextFile)?(V2)?|LookupTableImport(V2)?")
"""What gives a lookup table its contents."""

DRAWS = ops("""
    RandomUniform RandomStandardNormal TruncatedNormal ParameterizedTruncatedNormal
    StatelessRandomUniform StatelessRandomUniformV2 StatelessRandomNormal StatelessRandomNormalV2
    StatelessTruncatedNormal StatelessTruncatedNormalV2 StatelessParameterizedTruncatedNormal
    """)
"""What draws floats that depend on no data, of the shape that its first input says."""

NOISE = DRAWS | ops("""
    RandomUniformInt RandomGamma RandomPoisson RandomPoissonV2 StatelessRandomUniformInt
    StatelessRandomUniformIntV2 StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2
    StatelessRandomGammaV2 StatelessRandomGammaV3 StatelessRandomPoisson
    """)
"""What draws a tensor of the shape that its first input says."""

RANDOM = NOISE | ops("""
    RandomShuffle RandomCrop Multinomial StatelessMultinomial SampleDistortedBoundingBox
    SampleDistortedBoundingBoxV2 LogUniformCandidateSampler UniformCandidateSampler
    LearnedUnigramCandidateSampler FixedUnigramCandidateSampler
    """)
"""What depends on chance, whatever else it takes."""

GENERATORS = ops("""
    RngReadAndSkip RngSkip StatefulUniform StatefulUniformInt StatefulUniformFullInt
    StatefulStandardNormal StatefulStandardNormalV2 StatefulTruncatedNormal StatefulRandomBinomial
    """)
"""What counts in a variable how many numbers were drawn, as `tf.random.Generator` does."""

# -- calls, branches and loops -----------------------------------------------------------------

CALLS = ops("PartitionedCall StatefulPartitionedCall")
IFS = ops("If StatelessIf")
CASES = ops("Case StatelessCase")
WHILES = ops("While StatelessWhile")

LOOP = "_Loop"
INLINED = ops("_Return _Join") | {LOOP}
"""What calls leave behind that were replaced by what they do (see `functions`)."""

SWITCHES = ops("Switch RefSwitch")
MERGES = ops("Merge RefMerge")
ENTERS = ops("Enter RefEnter")
EXITS = ops("Exit RefExit")
NEXT_ITERATION = ops("NextIteration RefNextIteration")
CONTROL_FLOW = SWITCHES | MERGES | ENTERS | EXITS | NEXT_ITERATION | INLINED
"""What takes a tensor into branches and loops, around in them, and out."""

# -- tensors that stay what they are -----------------------------------------------------------

IDENTITIES = ops("Identity RefIdentity")
SAME = IDENTITIES | ops("Snapshot StopGradient PreventGradient CheckNumerics EnsureShape")
"""What gives its input out as it is."""

READS = SAME | ENTERS | ops("ReadVariableOp")
"""What gives a variable on as it is, also into a loop."""

PASSING = READS | SWITCHES
"""What gives its first input on as it is. Not so what joins branches or turns of a loop."""

RESTORED = IDENTITIES | ops("Reshape Cast")
"""What stands between what a saver restores and what it assigns that to."""

# -- tensors in another form -------------------------------------------------------------------

RESHAPES = ops("Reshape Squeeze ExpandDims")
"""What keeps entries and their order, in another shape."""

LAYOUT = SAME | RESHAPES | ops("Transpose Cast")
"""What keeps the entries, in another order or dtype."""

MOVES = LAYOUT | CONTROL_FLOW
"""What keeps the entries, and may take them through branches and loops."""

JOINS = ops("Concat ConcatV2")
SPLITS = ops("Split SplitV")
SLICES = ops("Slice StridedSlice")
STACKS = ops("Pack Unpack")
REPEATS = ops("Tile BroadcastTo")
LOOKUPS = ops("Gather GatherV2 ResourceGather")
SELECTS = ops("Select SelectV2")
REVERSES = ops("Reverse ReverseV2 ReverseSequence")

ARRAYS = ops("TensorArray TensorArrayV2 TensorArrayV3")
ARRAY_READS = ops("TensorArrayRead TensorArrayReadV2 TensorArrayReadV3")
ARRAY_MOVES = ARRAY_READS | ops("""
    TensorArrayWrite TensorArrayWriteV2 TensorArrayWriteV3 TensorArrayScatter TensorArrayScatterV2
    TensorArrayScatterV3 TensorArrayUnpack TensorArrayGather TensorArrayGatherV2
    TensorArrayGatherV3 TensorArrayPack
    """)
"""What puts tensors into arrays, and takes them out."""

# -- arithmetic --------------------------------------------------------------------------------

ADDS = ops("Add AddV2")
BIAS_ADDS = ops("BiasAdd BiasAddV1")
QUOTIENTS = ops("RealDiv Div")
"""What divides, with a pole where the divisor is zero."""

DIVISIONS = QUOTIENTS | ops("DivNoNan")
RECIPROCALS = ops("Reciprocal Inv")
COMPARING = ops("Less LessEqual Greater GreaterEqual")
MATMULS = ops("MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3")
CONTRACTIONS = MATMULS | ops("Einsum")
BATCH_NORMS = ops("FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3")
LSTM_BLOCKS = ops("BlockLSTM BlockLSTMV2 LSTMBlockCell")
CELLS = LSTM_BLOCKS | ops("GRUBlockCell")
"""Recurrent cells that are one op."""

ACTIVATIONS: Mapping[str, str] = {
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Relu": "relu",
    "Relu6": "relu6",
    "Elu": "elu",
    "Selu": "selu",
    "Softsign": "softsign",
    "Softplus": "softplus",
    "Maximum": "hard_sigmoid",
    "Minimum": "hard_sigmoid",
    "LeakyRelu": "leaky_relu",
    "Erf": "gelu",
    "Exp": "exp",
    "Sin": "sin",
}
"""The activation that begins with an op, as Keras calls it."""

# -- what is told of tensors -------------------------------------------------------------------

SIZES = ops("Shape ShapeN Size VariableShape")
"""What tells sizes of a tensor."""

SHAPE_ONLY = SIZES | ops("""
    Rank ZerosLike OnesLike TensorArraySize TensorArraySizeV2 TensorArraySizeV3 TensorListLength
    BroadcastGradientArgs ConcatOffset VarIsInitializedOp IsVariableInitialized
    """)
"""What takes nothing from a tensor but its shape, or that it is there."""

BOOLS = COMPARING | ops("""
    Equal NotEqual LogicalAnd LogicalOr LogicalNot All Any IsNan IsInf IsFinite InTopK InTopKV2
    IsVariableInitialized VarIsInitializedOp
    """)
"""What gives booleans."""

# -- what is done beside computing -------------------------------------------------------------

# They look like what changes a state, and change nothing.
_NO_EFFECT = ops("LookupTableFind LookupTableFindV2 LookupTableSize LookupTableSizeV2")
_EFFECT = re.compile(
    r"(Resource)?(Sparse)?Apply[A-Z].*|Assign.*|(Resource)?StridedSliceAssign|"
    r"(Resource)?Scatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update)|(Resource)?CountUpTo|"
    r"Save.*|MergeV2Checkpoints|Write.*|.*Summary(V2)?|PrintV2|Queue(Enqueue|Close).*|Stage|"
    r"OutfeedEnqueue.*|_(Host)?Send|(Lookup|Initialize)Table.*|TensorArrayClose.*|"
    r"(Sparse)?(Conditional)?Accumulator.*|Barrier.*|DisableCopyOnRead"
)
_WATCHING = re.compile(r".*Summary(V2)?|Print|PrintV2|Assert|NoOp|ControlTrigger")
# As many as there are ops in TensorFlow, and more than any graph has.
_MAX_KNOWN = 2048


@lru_cache(_MAX_KNOWN)
def is_effect(op: str) -> bool:
    """Tell whether an op changes a state or writes something, rather than to compute."""
    return op not in _NO_EFFECT and bool(_EFFECT.fullmatch(op))


@lru_cache(_MAX_KNOWN)
def is_watching(op: str) -> bool:
    """Tell whether an op only looks at what it gets: summaries, assertions."""
    return bool(_WATCHING.fullmatch(op))
