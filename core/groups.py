"""Groups and what they cost: the table everything is ranked on.

A *group* is the smallest unit removed together: an attention group is one KV head with its H/K query heads, an
MLP group is one channel. A *block* is all groups of one kind in one layer. Cost is the number of parameters that
really leave the model with the group, counted from the tensors.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

KINDS = ("attention", "mlp")
ATTENTION, MLP = 0, 1


@dataclass(frozen=True)
class LayerShape:
    """Widths and parameter counts of one decoder layer.

    num_heads, num_kv_heads, head_dim: H, K, D. intermediate_size: F.
    kv_group_params: parameters that leave with one attention group (q, k, v rows, their biases, o columns).
    channel_params: parameters that leave with one MLP channel (gate and up rows, their biases, down column).
    attention_fixed_params, mlp_fixed_params: parameters inside the block that no group owns (o_proj and down_proj
    biases, per-head norms). norm_params: the layer's remaining parameters; they leave only with the whole layer.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    kv_group_params: int
    channel_params: int
    attention_fixed_params: int = 0
    mlp_fixed_params: int = 0
    norm_params: int = 0

    @property
    def widths(self) -> tuple[int, int]:
        """Groups of each kind: (K, F)."""
        return (self.num_kv_heads, self.intermediate_size)

    @property
    def group_params(self) -> tuple[int, int]:
        """Cost of one group of each kind."""
        return (self.kv_group_params, self.channel_params)

    @property
    def attention_params(self) -> int:
        return self.num_kv_heads * self.kv_group_params + self.attention_fixed_params

    @property
    def mlp_params(self) -> int:
        return self.intermediate_size * self.channel_params + self.mlp_fixed_params

    @property
    def prunable_params(self) -> int:
        """Parameters held by groups."""
        return self.num_kv_heads * self.kv_group_params + self.intermediate_size * self.channel_params

    @property
    def total_params(self) -> int:
        return self.attention_params + self.mlp_params + self.norm_params


@dataclass(frozen=True)
class Architecture:
    """What planning and reports need to know of a model; no weights.

    total_params counts every parameter once (embeddings included, tied weights once).
    """

    model_type: str
    hidden_size: int
    total_params: int
    layers: tuple[LayerShape, ...]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def layer_params(self) -> int:
        return sum(layer.total_params for layer in self.layers)

    @property
    def prunable_params(self) -> int:
        return sum(layer.prunable_params for layer in self.layers)

    @cached_property
    def groups(self) -> "GroupTable":
        return GroupTable.of(self)


@dataclass(frozen=True)
class GroupTable:
    """Every group of a model, sorted by layer, then kind (attention before mlp), then index. G rows.

    layer, index: int64 (G,). kind: int8 (G,), 0 attention, 1 mlp. cost: int64 (G,), parameters.
    block: int64 (G,), 2*layer + kind. block_start: int64 (2L+1,); block b is rows block_start[b]:block_start[b+1].
    """

    layer: np.ndarray
    kind: np.ndarray
    index: np.ndarray
    cost: np.ndarray
    num_layers: int
    block: np.ndarray = field(repr=False)
    block_start: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.cost)

    @staticmethod
    def of(architecture: Architecture) -> "GroupTable":
        widths = np.array([w for layer in architecture.layers for w in layer.widths], dtype=np.int64)
        costs = np.array([c for layer in architecture.layers for c in layer.group_params], dtype=np.int64)
        start = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)
        block = np.repeat(np.arange(len(widths), dtype=np.int64), widths)
        return GroupTable(
            layer=block // 2,
            kind=(block % 2).astype(np.int8),
            index=np.arange(start[-1], dtype=np.int64) - start[block],
            cost=costs[block],
            num_layers=architecture.num_layers,
            block=block,
            block_start=start,
        )

    def rows(self, layer: int, kind: int) -> slice:
        """The rows of one block."""
        block = 2 * layer + kind
        return slice(int(self.block_start[block]), int(self.block_start[block + 1]))
