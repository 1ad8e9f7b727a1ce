"""BERT's forward pass in numpy, from a folder as transformers loads it: its names and layouts.

Reference:
    transformers: models/bert/modeling_bert.py (BertForPreTraining).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file


class ReferenceBert:
    """A BERT in a folder with `config.json` and `model.safetensors`."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.weights = load_file(folder / "model.safetensors")

    def __call__(self, ids: Any, mask: Any, types: Any) -> dict[str, Any]:
        """Return what it computes for arrays of shape (sentences, length)."""
        tables = "bert.embeddings"
        hidden = self.weights[f"{tables}.word_embeddings.weight"][ids]
        hidden = hidden + self.weights[f"{tables}.token_type_embeddings.weight"][types]
        hidden = hidden + self.weights[f"{tables}.position_embeddings.weight"][: ids.shape[1]]
        hidden = self._norm(tables, hidden)
        found = {"embedding_output": hidden}
        hidden_layers = [hidden]
        for number in range(self.config["num_hidden_layers"]):
            hidden = self._layer(f"bert.encoder.layer.{number}", hidden, mask)
            hidden_layers.append(hidden)
        found["layer_0"], found["sequence_output"] = hidden_layers[1], hidden
        found["pooled_output"] = np.tanh(self._linear("bert.pooler.dense", hidden[:, 0]))
        words = self._act(self._linear("cls.predictions.transform.dense", hidden))
        words = self._norm("cls.predictions.transform", words)
        table = self.weights[f"{tables}.word_embeddings.weight"]
        found["mlm_logits"] = words @ table.T + self.weights["cls.predictions.bias"]
        found["nsp_logits"] = self._linear("cls.seq_relationship", found["pooled_output"])
        return found

    def _layer(self, scope: str, hidden: Any, mask: Any) -> Any:
        attended = self._attention(f"{scope}.attention.self", hidden, mask)
        attended = self._linear(f"{scope}.attention.output.dense", attended) + hidden
        attended = self._norm(f"{scope}.attention.output", attended)
        inner = self._act(self._linear(f"{scope}.intermediate.dense", attended))
        return self._norm(
            f"{scope}.output", self._linear(f"{scope}.output.dense", inner) + attended
        )

    def _attention(self, scope: str, hidden: Any, mask: Any) -> Any:
        heads = self.config["num_attention_heads"]
        sentences, length, size = hidden.shape

        def split(what: str) -> Any:
            values = self._linear(f"{scope}.{what}", hidden)
            return values.reshape(sentences, length, heads, size // heads).transpose(0, 2, 1, 3)

        scores = split("query") @ split("key").transpose(0, 1, 3, 2) / math.sqrt(size // heads)
        scores = scores + (1.0 - mask[:, None, None, :]) * -10000.0
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares = shares / shares.sum(-1, keepdims=True)
        return (shares @ split("value")).transpose(0, 2, 1, 3).reshape(sentences, length, size)

    def _linear(self, scope: str, values: Any) -> Any:
        return values @ self.weights[f"{scope}.weight"].T + self.weights[f"{scope}.bias"]

    def _norm(self, scope: str, values: Any) -> Any:
        centred = values - values.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + self.config["layer_norm_eps"])
        norm = f"{scope}.LayerNorm"
        return centred / scale * self.weights[f"{norm}.weight"] + self.weights[f"{norm}.bias"]

    def _act(self, values: Any) -> Any:
        activations: dict[str, Callable[[Any], Any]] = {
            "gelu": np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
            "gelu_new": lambda x: (
                0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
            ),
            "relu": lambda x: np.maximum(x, 0),
        }
        return activations[self.config["hidden_act"]](values)
