"""Writes the configuration with which Hugging Face's transformers load a BERT."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from converter import (
    Beside,
    ConverterError,
    InputError,
    PlanError,
    Strategy,
    UsageError,
    hookimpl,
    option,
)

if TYPE_CHECKING:
    from converter import Checkpoint, Variable
    from converter.graph.node import Node
    from converter.graph.written import Graph

_MAX_BYTES = 1 << 20
_MAX_NODES = 200

# Where the sizes stand: a variable, and which of its axes.
_SIZES = {
    "vocab_size": (r"bert/embeddings/word_embeddings", 0),
    "hidden_size": (r"bert/embeddings/word_embeddings", 1),
    "max_position_embeddings": (r"bert/embeddings/position_embeddings", 0),
    "type_vocab_size": (r"bert/embeddings/token_type_embeddings", 0),
    "intermediate_size": (r"bert/encoder/layer_0/intermediate/dense/kernel", 1),
}
_LAYER = re.compile(r"(?:.+/)?bert/encoder/layer_(\d+)/.*")
# The first whose variable is there.
_ARCHITECTURES = {
    "BertForPreTraining": r"cls/seq_relationship/output_weights",
    "BertForMaskedLM": r"cls/predictions/output_bias",
    "BertForQuestionAnswering": r"cls/squad/output_weights",
    "BertForSequenceClassification": r"output_weights",
    "BertModel": r"bert/embeddings/word_embeddings",
}
# transformers' name of what an op computes in the feed-forward layers.
_ACTIVATIONS = {"Erf": "gelu", "Erfc": "gelu", "Relu": "relu", "Tanh": "tanh", "Gelu": "gelu"}
_DEFAULTS: Mapping[str, object] = {"hidden_act": "gelu", "layer_norm_eps": 1e-12}


@dataclass(frozen=True)
class Bert(Strategy):
    """Write the config.json of a BERT beside its variables, which stay as they are.

    The sizes are those of the variables. The number of heads, and what else no shape tells, is
    from `bert_config.json` beside the checkpoint and from the graph (`.meta`); an option wins.
    The recipe `bert-hf` uses this before it renames the variables.

    Example:
        convert ckpt bert_model.ckpt --recipe bert-hf --bert-heads 12 -o out/
    """

    name: ClassVar[str] = "bert"
    heads: int | None = option(None, help="the number of attention heads")
    act: str | None = option(
        None, help="the activation of the feed-forward layers: `gelu`, `gelu_new`, `relu`"
    )
    config: Path | None = option(
        None, help="a configuration like google-research's; the default lies beside the checkpoint"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads is not None and self.heads < 1:
            raise UsageError(f"heads must be at least 1, got {self.heads}")

    def beside(self, checkpoint: Checkpoint) -> Beside:
        found = _Configuration(self, checkpoint)
        text = json.dumps(found.values, indent=2, sort_keys=True, ensure_ascii=False)
        return Beside(files={"config.json": f"{text}\n".encode()})

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        return _Configuration(self, checkpoint).notes


class _Configuration:
    """What config.json says, and where it is from.

    Raises:
        PlanError: the variables are no BERT's, two sources disagree, or nothing tells the heads.
    """

    def __init__(self, strategy: Bert, checkpoint: Checkpoint) -> None:
        self.notes: list[str] = []
        self._checkpoint = checkpoint
        sizes = dict(self._sizes())
        said, source = _read(strategy.config, checkpoint)
        for key, size in sizes.items():
            if key in said and said[key] != size:
                raise PlanError(
                    f"{source}: {key} is {json.dumps(said[key])}, and the variables have {size}; "
                    f"is it of another checkpoint? --bert-config FILE names the right one"
                )
        graph = _graph(checkpoint)
        self.values: dict[str, Any] = {**_DEFAULTS, **said, **sizes, "model_type": "bert"}
        self.values["num_attention_heads"] = self._heads(strategy, said, source)
        self.values["hidden_act"] = self._activation(strategy, said, source, graph)
        self.values["architectures"] = [self._architecture()]

    def _find(self, pattern: str) -> Variable | None:
        fits = re.compile(rf"(?:.+/)?{pattern}").fullmatch
        return next((v for name, v in self._checkpoint.items() if fits(name)), None)

    def _sizes(self) -> Iterator[tuple[str, int]]:
        for key, (pattern, axis) in _SIZES.items():
            variable = self._find(pattern)
            if variable is None or len(variable.shape) != 2:
                raise PlanError(
                    f"{self._checkpoint.path}: {pattern} is missing, or no matrix; it is no BERT "
                    f"under the names of google-research"
                )
            yield key, variable.shape[axis]
        layers = {int(m[1]) for m in map(_LAYER.fullmatch, self._checkpoint) if m}
        if layers != set(range(len(layers))):
            raise PlanError(
                f"{self._checkpoint.path}: of {max(layers) + 1} layers {len(layers)} are there"
            )
        yield "num_hidden_layers", len(layers)

    def _architecture(self) -> str:
        name = next(name for name, pattern in _ARCHITECTURES.items() if self._find(pattern))
        classes = self._find(_ARCHITECTURES[name])
        if name == "BertForSequenceClassification" and classes is not None:
            self.values["num_labels"] = classes.shape[0]
        return name

    def _heads(self, strategy: Bert, said: Mapping[str, Any], source: str) -> int:
        hidden = self._find(_SIZES["hidden_size"][0])
        size = hidden.shape[1] if hidden is not None else 0
        told: dict[str, object] = {}
        if strategy.heads is not None:
            told["--bert-heads"] = strategy.heads
        else:
            if "num_attention_heads" in said:
                told[source] = said["num_attention_heads"]
            drawn = _heads_of(self._checkpoint)
            if drawn is not None:
                told["the graph"] = drawn
        if not told:
            usual = f" {size // 64} have the usual size of 64;" if size % 64 == 0 else ""
            raise PlanError(
                f"{self._checkpoint.path}: nothing tells how many attention heads it has;{usual} "
                f"give --bert-heads, or put bert_config.json beside it"
            )
        heads = next(iter(told.values()))
        if len(set(map(str, told.values()))) > 1:
            both = ", and ".join(f"{where} says {value}" for where, value in told.items())
            raise PlanError(f"num_attention_heads: {both}; say which with --bert-heads")
        if type(heads) is not int or heads < 1 or size % heads:
            raise PlanError(
                f"num_attention_heads: {json.dumps(heads)} heads cannot share a hidden size of "
                f"{size}; give --bert-heads"
            )
        if "the graph" in told and len(told) == 1:
            self.notes.append(f"the graph tells the number of attention heads, {heads}")
        return heads

    def _activation(
        self, strategy: Bert, said: Mapping[str, Any], source: str, graph: Graph | None
    ) -> object:
        if strategy.act is not None:
            return strategy.act
        drawn = None if graph is None else _activation_of(graph)
        wanted = said.get("hidden_act")
        if drawn is None:
            if wanted is None:
                self.notes.append("nothing tells the activation; gelu, as BERT was published")
            return wanted or _DEFAULTS["hidden_act"]
        # Of google-research's code the first year computed "gelu" by erf, the later ones by tanh.
        if wanted not in (None, drawn, "gelu"):
            raise PlanError(
                f"hidden_act: {source} says {json.dumps(wanted)}, and the graph computes {drawn}; "
                f"say which with --bert-act"
            )
        if drawn != (wanted or "gelu"):
            self.notes.append(f"the graph computes the activation {drawn}, not gelu by erf")
        return drawn


def _read(given: Path | None, checkpoint: Checkpoint) -> tuple[dict[str, Any], str]:
    """Return what google-research's configuration says, and its file."""
    directory = checkpoint.files[0].parent if checkpoint.files else checkpoint.path.parent
    path = given or directory / "bert_config.json"
    if given is None and not path.is_file():
        return {}, ""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise InputError(f"{path}: it has over {_MAX_BYTES} bytes; it is no configuration")
        said = json.loads(data)
    except OSError as error:
        raise InputError(f"{path}: the configuration cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: it is no JSON; repair it, or give --bert-config FILE") from None
    if not isinstance(said, dict):
        raise InputError(f"{path}: it is no JSON object; give --bert-config FILE")
    if "layer_norm_epsilon" in said:
        said.setdefault("layer_norm_eps", said.pop("layer_norm_epsilon"))
    return said, str(path)


# -- what the graph tells --------------------------------------------------------------------------


def _graph(checkpoint: Checkpoint) -> Graph | None:
    from converter.graph.written import read_graph

    try:
        return read_graph(checkpoint)
    except ConverterError:
        return None


def _heads_of(checkpoint: Checkpoint) -> int | None:
    """Return the number of heads by the structure: a query has heads times a size as columns."""
    fits = re.compile(r"(?:.+/)?bert/encoder/layer_0/attention/self/query/kernel").fullmatch
    name = next(filter(fits, checkpoint), None)
    if name is None or checkpoint.meta is None:
        return None
    from converter.structure.infer import structure_of

    try:
        structure = structure_of(checkpoint)
    except ConverterError:
        return None
    axes = structure.axes.get(name, ())
    terms = axes[1].terms if len(axes) == 2 else ()
    if len(terms) != 1 or len(terms[0]) != 2:
        return None
    outer = terms[0][0]
    return structure.sizes.get(outer) if isinstance(outer, str) else None


def _activation_of(graph: Graph) -> str | None:
    """Return what is computed from the first thing that a feed-forward layer's bias is added to."""
    fits = re.compile(r"(?:.+/)?bert/encoder/layer_0/intermediate/dense/bias").fullmatch
    start = next(filter(fits, graph.nodes), None)
    if start is None:
        return None
    seen, queue = {start}, [start]
    powers = False
    for name in queue:
        for node in graph.consumers.get(name, ()):
            if node.name in seen or len(queue) > _MAX_NODES:
                continue
            seen.add(node.name)
            queue.append(node.name)
            powers |= node.op in ("Pow", "Square")
            if node.op in _ACTIVATIONS and not _is_of_a_gradient(node):
                # A polynomial before the tanh is the approximation of gelu.
                return "gelu_new" if node.op == "Tanh" and powers else _ACTIVATIONS[node.op]
    return None


def _is_of_a_gradient(node: Node) -> bool:
    return "gradients" in node.name.split("/")


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Bert
