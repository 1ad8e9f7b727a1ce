"""Rules of what brings tensors in, and of what only tells sizes and truths."""

from __future__ import annotations

from collections.abc import Sequence

from converter.graph.node import Node
from converter.structure.tensors.analysis import Analysis, Rule, Tensor, for_ops
from converter.structure.tensors.atoms import leaf
from converter.structure.tensors.flow import Kind


def placeholder(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Bring data in: its sizes are given from outside."""
    if node in an.flow.settings:
        return Tensor(())
    axes = an.fresh(an.graph.declared(node, 0))
    if inputs:
        # Nobody has to feed what has a value already, such as the zeros of a first state.
        return Tensor(an.tie_all((Tensor(axes), inputs[0]), node))
    an.touch("input" if node in an.flow.inner else "label", axes or (), node)
    return Tensor(axes)


def source(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Bring several tensors in."""
    ports = {
        output.port
        for consumer in an.graph.consumers[node]
        for output in consumer.inputs
        if output.node is node
    }
    found = []
    for port in range(max(ports, default=0) + 1):
        axes = an.fresh(an.graph.declared(node, port))
        an.touch("input", axes or (), node)
        found.append(Tensor(axes))
    return found


def scalar(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """One number or truth, in which no axis is left."""
    return Tensor(())


def listed(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """What is looked up has the shape of its keys."""
    return Tensor(inputs[1].axes if len(inputs) > 1 else None)


def drawn(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Draw classes by their logits."""
    logits = inputs[0]
    if logits.axes is not None and an.kind(node.inputs[0]) is Kind.DATA:
        an.touch("softmax", logits.axes[-1:], node)
    if logits.axes is None:
        return Tensor(None)
    count = inputs[1].cells
    last = an.sized(count[0], node) if count else None
    return Tensor((logits.axes[0], last)) if last is not None else Tensor(None)


def labelled(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Align logits with a sequence of labels: each class is one of its own."""
    logits = inputs[0]
    if logits.axes is not None:
        an.touch("choice", logits.axes[-1:], node)
    return _apart(an, node)


def apart(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Make something of indices that has no axis in common with them."""
    return _apart(an, node)


def _apart(an: Analysis, node: Node) -> list[Tensor]:
    ports = {
        output.port
        for consumer in an.graph.consumers[node]
        for output in consumer.inputs
        if output.node is node
    }
    shapes = [an.graph.declared(node, port) for port in range(max(ports, default=0) + 1)]
    return [Tensor(an.fresh(shape)) for shape in shapes]


def sparse_matmul(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Multiply a sparse matrix with a dense one, which is a lookup of weighted rows."""
    _, _, shape, dense = inputs
    if dense.axes is None or len(dense.axes) != 2 or node.integer("adjoint_b"):
        return Tensor(an.fresh(an.graph.declared(node, 0)))
    an.touch("lookup", dense.axes[:1], node)
    if an.is_weight(node.inputs[3]):
        an.use(dense.origin(0), dense.axes[0], "consume", node)
        an.use(dense.origin(1), dense.axes[1], "produce", node)
    rows = shape.cells[1 if node.integer("adjoint_a") else 0] if shape.cells else None
    return Tensor((leaf(None) if rows is None else an.sized(rows, node), dense.axes[1]))


RULES: dict[str, Rule] = {
    **for_ops("Placeholder PlaceholderV2 PlaceholderWithDefault", placeholder),
    **for_ops(
        """IteratorGetNext IteratorGetNextSync OneShotIterator QueueDequeue QueueDequeueV2
        QueueDequeueMany QueueDequeueManyV2 QueueDequeueUpTo QueueDequeueUpToV2 InfeedDequeue
        InfeedDequeueTuple ReaderRead ReaderReadV2 Unstage PyFunc PyFuncStateless EagerPyFunc
        ParseExample ParseExampleV2 ParseSingleExample DecodeRaw DecodeCSV DecodeJpeg DecodePng
        _Arg""",
        source,
    ),
    **for_ops(
        """TensorArraySize TensorArraySizeV2 TensorArraySizeV3 TensorListLength
        IsVariableInitialized VarIsInitializedOp VarHandleOp HashTable HashTableV2 IteratorV2
        Iterator FIFOQueue FIFOQueueV2 RandomShuffleQueue RandomShuffleQueueV2 MutexV2
        Timestamp ControlTrigger""",
        scalar,
    ),
    **for_ops("LookupTableFind LookupTableFindV2", listed),
    "Multinomial": drawn,
    **for_ops("CTCLoss CTCLossV2 CTCGreedyDecoder CTCBeamSearchDecoder", labelled),
    **for_ops(
        """LogUniformCandidateSampler UniformCandidateSampler LearnedUnigramCandidateSampler
        FixedUnigramCandidateSampler AllCandidateSampler ThreadUnsafeUnigramCandidateSampler
        ComputeAccidentalHits SparseToDense SparseReshape SparseReorder SparseFillEmptyRows
        SparseSlice StringSplit StringToHashBucket StringToHashBucketFast StringToNumber
        DecodeBase64 AsString StringJoin RegexReplace DenseToDenseSetOperation""",
        apart,
    ),
    "SparseTensorDenseMatMul": sparse_matmul,
}
