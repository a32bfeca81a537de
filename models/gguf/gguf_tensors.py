"""Which GGUF tensors a checkpoint becomes, and how each is read from its safetensors.

The head count and axis order follow the checkpoint: (out, in), which GGUF lists in reverse. One thing changes:
``deci`` rotates neighbouring values of a head, (0, 1), (2, 3), ..., where transformers rotates (0, D/2), (1, D/2 + 1),
.... Reordering the rows of q and k (weights and biases alike) from halves to pairs makes the two the same, because
attention looks at q and k through their dot product only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import ModelError
from models.gguf.support import DECI, has_output_bias, has_qkv_bias
from models.loading import ModelSource
from models.tensors import StoredTensors


@dataclass(frozen=True)
class Tensor:
    """One GGUF tensor: ``sources`` joined along the rows. paired_heads: heads whose rows go from halves to pairs."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    paired_heads: int = 0

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) > 1


def tensors_of(source: ModelSource, arch: str) -> list[Tensor]:
    """Every tensor of the file, in the file's order, with the shape that the configuration demands."""
    hidden, vocabulary = source.architecture.hidden_size, source.config.vocab_size
    tensors = [Tensor("token_embd.weight", ("model.embed_tokens.weight",), (vocabulary, hidden))]
    for layer in range(source.architecture.num_layers):
        tensors += _attention(source, arch, layer)
        tensors += _mlp(source, layer)
    tensors.append(Tensor("output_norm.weight", ("model.norm.weight",), (hidden,)))
    if not source.config.tie_word_embeddings:
        tensors.append(Tensor("output.weight", ("lm_head.weight",), (vocabulary, hidden)))
    return tensors


def _attention(source: ModelSource, arch: str, layer: int) -> Iterator[Tensor]:
    shape, hidden = source.architecture.layers[layer], source.architecture.hidden_size
    ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
    heads = {"q": shape.num_heads, "k": shape.num_kv_heads, "v": shape.num_kv_heads}
    rows = {name: count * shape.head_dim for name, count in heads.items()}
    yield Tensor(f"{theirs}.attn_norm.weight", (f"{ours}.input_layernorm.weight",), (hidden,))
    if arch == DECI:
        for name, count in heads.items():
            paired, path = 0 if name == "v" else count, f"{ours}.self_attn.{name}_proj"
            yield Tensor(f"{theirs}.attn_{name}.weight", (f"{path}.weight",), (rows[name], hidden), paired)
            if has_qkv_bias(source):
                yield Tensor(f"{theirs}.attn_{name}.bias", (f"{path}.bias",), (rows[name],), paired)
    else:
        stacked = tuple(f"{ours}.self_attn.{name}_proj.weight" for name in heads)
        yield Tensor(f"{theirs}.attn_qkv.weight", stacked, (sum(rows.values()), hidden))
        for name in ("q", "k"):
            norm = f"{ours}.self_attn.{name}_norm.weight"
            yield Tensor(f"{theirs}.attn_{name}_norm.weight", (norm,), (shape.head_dim,))
    yield Tensor(f"{theirs}.attn_output.weight", (f"{ours}.self_attn.o_proj.weight",), (hidden, rows["q"]))
    if has_output_bias(source):
        yield Tensor(f"{theirs}.attn_output.bias", (f"{ours}.self_attn.o_proj.bias",), (hidden,))


def _mlp(source: ModelSource, layer: int) -> Iterator[Tensor]:
    channels, hidden = source.architecture.layers[layer].intermediate_size, source.architecture.hidden_size
    ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
    biased = source.family.model_type == "llama" and bool(source.config.mlp_bias)
    yield Tensor(f"{theirs}.ffn_norm.weight", (f"{ours}.post_attention_layernorm.weight",), (hidden,))
    for name, shape in {"gate": (channels, hidden), "up": (channels, hidden), "down": (hidden, channels)}.items():
        yield Tensor(f"{theirs}.ffn_{name}.weight", (f"{ours}.mlp.{name}_proj.weight",), shape)
        if biased:
            yield Tensor(f"{theirs}.ffn_{name}.bias", (f"{ours}.mlp.{name}_proj.bias",), shape[:1])


def check_shapes(folder: Path, weights: StoredTensors, tensors: list[Tensor]) -> None:
    """Raise ModelError unless the checkpoint's tensors are those that ``tensors`` names, in the right shapes."""
    shapes = {name: tensor.spec.shape for name, tensor in weights.stored.items()}
    wanted = {name for tensor in tensors for name in tensor.sources}
    missing, left = sorted(wanted - shapes.keys()), sorted(shapes.keys() - wanted)
    if missing or left:
        problem = f"lacks {missing[0]}" if missing else f"holds {left[0]}, which has no place in the GGUF file"
        raise ModelError(f"{folder} {problem}; is the checkpoint complete, and does config.json belong to it?")
    for tensor in tensors:
        found = [shapes[name] for name in tensor.sources]
        if (sum(shape[0] for shape in found), *found[0][1:]) != tensor.shape:
            raise ModelError(
                f"{folder}: {tensor.sources[0]} is {list(found[0])}, but config.json makes {tensor.name} "
                f"{list(tensor.shape)}; does config.json belong to it?"
            )


def read_tensor(weights: StoredTensors, tensor: Tensor) -> torch.Tensor:
    """The tensor as GGUF wants it, in the stored dtype."""
    parts = [weights[name] for name in tensor.sources]
    values = torch.cat(parts) if len(parts) > 1 else parts[0]
    return halves_to_pairs(values, tensor.paired_heads) if tensor.paired_heads else values


def halves_to_pairs(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows 0, D/2, 1, D/2 + 1, ... of every head. values: (H*D,) or (H*D, C)."""
    halves = values.reshape(heads, 2, -1, *values.shape[1:])  # (H, 2, D/2, ...)
    return halves.transpose(1, 2).reshape(values.shape)
