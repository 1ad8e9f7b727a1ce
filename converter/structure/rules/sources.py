"""Rules of what brings tensors in, and of what only tells sizes and truths."""

from __future__ import annotations

from collections.abc import Sequence

from converter.structure.analysis import Analysis, Rule, Tensor, for_ops
from converter.structure.flow import Kind
from converter.structure.graph import Node


def placeholder(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Bring data in: its sizes are given from outside."""
    if node in an.flow.settings:
        return Tensor(())
    axes = an.fresh(an.graph.declared(node, 0))
    if inputs:
        # Nobody has to feed what has a value already, such as the zeros of a first state.
        return Tensor(an.tie_all((Tensor(axes), inputs[0]), node))
    an.touch("input", axes or (), node)
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
        InTopK InTopKV2 Timestamp ControlTrigger""",
        scalar,
    ),
    **for_ops("LookupTableFind LookupTableFindV2", listed),
    "Multinomial": drawn,
}
