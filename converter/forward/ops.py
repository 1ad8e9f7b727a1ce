"""The kinds of operations that say something about the forward part of a graph."""

from __future__ import annotations

import re


def _ops(names: str) -> frozenset[str]:
    return frozenset(names.split())


VARIABLES = _ops("Variable VariableV2 VarHandleOp")
PLACEHOLDERS = _ops("Placeholder PlaceholderV2 PlaceholderWithDefault")
DEQUEUES = _ops(
    """
    IteratorGetNext IteratorGetNextSync QueueDequeue QueueDequeueV2 QueueDequeueMany
    QueueDequeueManyV2 QueueDequeueUpTo QueueDequeueUpToV2 InfeedDequeue InfeedDequeueTuple
    ReaderRead ReaderReadV2 Unstage PyFunc
    """
)
"""What hands data to a graph without a placeholder; each of its outputs can be fed instead."""

PASSING = _ops(
    """
    Identity RefIdentity Enter RefEnter Switch RefSwitch ReadVariableOp Snapshot StopGradient
    PreventGradient CheckNumerics
    """
)
"""What gives its first input on as it is."""

LAYOUT = _ops("Reshape Identity Squeeze ExpandDims Transpose Cast StopGradient")
"""What keeps the values, in another order or dtype."""

CARRYING = LAYOUT | _ops(
    """
    Slice StridedSlice Split SplitV Unpack Unstack Pack ConcatV2 Concat Enter Exit Switch Merge
    NextIteration Tile ReverseV2 Reverse ReverseSequence Unique UniqueV2 Minimum Maximum Select
    SelectV2 Where BroadcastTo Pad PadV2 TensorArrayScatter TensorArrayScatterV2
    TensorArrayScatterV3 TensorArrayUnpack TensorArrayWrite TensorArrayWriteV2 TensorArrayWriteV3
    TensorArrayRead TensorArrayReadV2 TensorArrayReadV3 TensorArrayGather TensorArrayGatherV2
    TensorArrayGatherV3
    """
)
"""What passes indices on, or takes some of them."""

PARTITIONING = _ops("FloorMod Mod FloorDiv Div")
LOOKUPS = _ops("Gather GatherV2 ResourceGather")
COMPARING = _ops("Less LessEqual Greater GreaterEqual")
SIZING = _ops("Pack Fill Reshape Range Tile Slice RandomUniform BroadcastTo TensorArrayV3")
"""What makes a shape, or a number of steps, of a number."""

BOOLS = COMPARING | _ops(
    """
    Equal NotEqual LogicalAnd LogicalOr LogicalNot All Any IsNan IsInf IsFinite InTopK InTopKV2
    IsVariableInitialized VarIsInitializedOp
    """
)
"""What gives booleans."""

SHAPE_ONLY = _ops(
    """
    Shape ShapeN Size Rank ZerosLike OnesLike VariableShape TensorArraySize TensorArraySizeV2
    TensorArraySizeV3 BroadcastGradientArgs
    """
)
"""What takes nothing from a tensor but its shape."""

ACCUMULATORS = _ops("EmptyTensorList TensorListReserve Const")
"""What a loop hands to its gradient, and takes from the gradient's scope at the beginning."""

TABLES = re.compile(r"(Mutable)?(Dense)?HashTable(OfTensors)?(V[234])?|AnonymousHashTable")
FILLS = re.compile(r"InitializeTable(FromTextFile)?(V2)?|LookupTableImport(V2)?")
"""What gives a lookup table its contents."""

DECISIONS = _ops("Softmax LogSoftmax Sigmoid ArgMax TopK TopKV2")
"""What is made of logits."""

LOSS = _ops("Log Neg Minimum Maximum Add AddV2 Sub Mul Square Pow")
"""What a loss does to a prediction before labels come in; with a constant beside it."""

ONLY_LOSS = _ops("Log Square Pow")
"""Those of them after which nothing is a prediction any more."""

RANDOM = _ops(
    """
    RandomUniform RandomUniformInt RandomStandardNormal TruncatedNormal
    ParameterizedTruncatedNormal RandomGamma RandomPoisson RandomPoissonV2 RandomShuffle
    RandomCrop Multinomial SampleDistortedBoundingBox SampleDistortedBoundingBoxV2
    LogUniformCandidateSampler UniformCandidateSampler LearnedUnigramCandidateSampler
    FixedUnigramCandidateSampler StatelessRandomUniform StatelessRandomNormal
    StatelessTruncatedNormal StatelessMultinomial
    """
)

ADDING = _ops("Add AddV2")
SELECTS = _ops("Select SelectV2")
SWITCHES = _ops("Switch RefSwitch")
MERGES = _ops("Merge RefMerge")
ENTERS = _ops("Enter RefEnter")
EXITS = _ops("Exit RefExit")
NEXT = _ops("NextIteration RefNextIteration")
ASSIGNS = _ops("Assign AssignVariableOp")
CALLS = _ops("PartitionedCall StatefulPartitionedCall")

# They look like what changes a state, and change nothing.
_NO_EFFECT = _ops("ScatterNd LookupTableFind LookupTableFindV2 LookupTableSize LookupTableSizeV2")
_EFFECT = re.compile(
    r"(Resource)?(Sparse)?Apply[A-Z].*|Assign.*|(Resource)?Scatter(Nd)?[A-Z][a-z]*|"
    r"Save.*|ShardedSave.*|Queue(Enqueue|Close).*|.*Summary(V2)?|Write.*|Stage|PrintV2|"
    r"OutfeedEnqueue.*|(Resource)?CountUpTo|(Lookup|Initialize)Table.*"
)
_WATCHING = re.compile(r".*Summary(V2)?|Print|PrintV2|Assert|NoOp|ControlTrigger")


def is_effect(op: str) -> bool:
    """Tell whether an op changes a state or writes something, rather than to compute."""
    return op not in _NO_EFFECT and bool(_EFFECT.fullmatch(op))


def is_watching(op: str) -> bool:
    """Tell whether an op only looks at what it gets: summaries, assertions."""
    return bool(_WATCHING.fullmatch(op))
