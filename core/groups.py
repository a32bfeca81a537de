"""Groups and what they cost: the table everything is ranked on.

A *group* is the smallest unit removed together: an attention group is one KV head with its H/K query heads, an
MLP group is one channel. A *block* is all groups of one kind in one layer, and a layer is a list of blocks; which
kinds there are says ``core/kinds.py``. Cost is the number of parameters that really leave the model with the group,
counted from the tensors.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from core.kinds import ATTENTION, MLP, TABLE, Kind

__all__ = ["ATTENTION", "MLP", "Architecture", "Block", "BlockTable", "GroupTable", "LayerShape"]


@dataclass(frozen=True)
class Block:
    """All groups of one kind in one layer.

    kind: position in ``core.kinds.TABLE``. width: number of groups. cost: parameters that leave with one of them.
    fixed_params: parameters inside the block that no group owns (o_proj and down_proj biases, per-head norms).
    rows: (part, rows of one group in it) for each part that the block's members are stacked of.
    """

    kind: int
    width: int
    cost: int
    fixed_params: int
    rows: tuple[tuple[str, int], ...]

    @property
    def about(self) -> Kind:
        """What holds for all blocks of this kind."""
        return TABLE[self.kind]

    def rows_per_group(self, part: str) -> int:
        return dict(self.rows)[part]

    @property
    def columns_per_group(self) -> int:
        """Input columns of the block's writing projection that one group owns."""
        return self.rows_per_group(self.about.output_part)

    @property
    def counts(self) -> dict[str, int]:
        """Its widths by their keys in reports; what they become when it is narrowed."""
        return self.about.counts(self.width, dict(self.rows))

    @property
    def prunable_params(self) -> int:
        return self.width * self.cost

    @property
    def total_params(self) -> int:
        return self.prunable_params + self.fixed_params


@dataclass(frozen=True, init=False)
class LayerShape:
    """Widths and parameter counts of one decoder layer: its blocks, ascending by kind, one of a kind at most.

    norm_params: parameters outside the blocks; they leave only with the whole layer.

    The constructor makes a dense layer, ``of`` one of any blocks. num_heads, num_kv_heads, head_dim,
    intermediate_size: H, K, D, F. kv_group_params: parameters that leave with one attention group (q, k, v rows, their
    biases, o columns). channel_params: parameters that leave with one MLP channel (gate and up rows, their biases,
    down column). attention_fixed_params, mlp_fixed_params: ``Block.fixed_params`` of either.
    """

    blocks: tuple[Block, ...]
    norm_params: int

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        intermediate_size: int,
        kv_group_params: int,
        channel_params: int,
        attention_fixed_params: int = 0,
        mlp_fixed_params: int = 0,
        norm_params: int = 0,
    ) -> None:
        rows = (("query", num_heads // max(1, num_kv_heads) * head_dim), ("kv", head_dim))
        attention = Block(ATTENTION, num_kv_heads, kv_group_params, attention_fixed_params, rows)
        mlp = Block(MLP, intermediate_size, channel_params, mlp_fixed_params, (("channel", 1),))
        self._set((attention, mlp), norm_params)

    @classmethod
    def of(cls, blocks: Iterable[Block], norm_params: int) -> "LayerShape":
        """A layer of these blocks. ValueError where they do not ascend by kind."""
        shape = cls.__new__(cls)
        shape._set(tuple(blocks), norm_params)
        return shape

    def _set(self, blocks: tuple[Block, ...], norm_params: int) -> None:
        kinds = [block.kind for block in blocks]
        if kinds != sorted(set(kinds)):
            raise ValueError(f"the blocks of a layer ascend by kind, one of each at most, not {kinds}")
        object.__setattr__(self, "blocks", blocks)  # frozen for everybody else
        object.__setattr__(self, "norm_params", norm_params)

    def block(self, kind: int) -> Block:
        """Its block of this kind. ValueError where it has none."""
        for block in self.blocks:
            if block.kind == kind:
                return block
        raise ValueError(f"a layer without {TABLE[kind].name} was asked for it")

    def has(self, kind: int) -> bool:
        return any(block.kind == kind for block in self.blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """Groups of each block; (K, F) in a dense layer."""
        return tuple(block.width for block in self.blocks)

    @property
    def group_params(self) -> tuple[int, ...]:
        """Cost of one group of each block."""
        return tuple(block.cost for block in self.blocks)

    @property
    def prunable_params(self) -> int:
        """Parameters held by groups."""
        return sum(block.prunable_params for block in self.blocks)

    @property
    def total_params(self) -> int:
        return sum(block.total_params for block in self.blocks) + self.norm_params

    def narrowed(self, widths: Sequence[int]) -> "LayerShape":
        """The same layer with other widths, one for each of its blocks."""
        blocks = [replace(block, width=width) for block, width in zip(self.blocks, widths, strict=True)]
        return LayerShape.of(blocks, self.norm_params)

    def facts(self) -> dict[str, int]:
        """Everything about it by its key in plan files; for a dense layer, what its constructor takes."""
        facts: dict[str, int] = {}
        for block in self.blocks:
            facts |= block.counts | block.about.constants(dict(block.rows))
        facts |= {block.about.cost_key: block.cost for block in self.blocks}
        facts |= {block.about.fixed_key: block.fixed_params for block in self.blocks}
        return facts | {"norm_params": self.norm_params}

    # The names that dense families have for it in their configurations

    @property
    def num_heads(self) -> int:
        return self.block(ATTENTION).counts["num_heads"]

    @property
    def num_kv_heads(self) -> int:
        return self.block(ATTENTION).width

    @property
    def head_dim(self) -> int:
        return self.block(ATTENTION).rows_per_group("kv")

    @property
    def intermediate_size(self) -> int:
        return self.block(MLP).width

    @property
    def kv_group_params(self) -> int:
        return self.block(ATTENTION).cost

    @property
    def channel_params(self) -> int:
        return self.block(MLP).cost


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

    @property
    def blocks(self) -> list[Block]:
        """Its B blocks, by layer, then kind."""
        return [block for layer in self.layers for block in layer.blocks]

    @property
    def kinds(self) -> tuple[int, ...]:
        """The kinds that some layer has, ascending."""
        return self.block_table.kinds

    @cached_property
    def block_table(self) -> "BlockTable":
        """The same blocks as arrays; unlike ``groups`` it has no row for each group."""
        return BlockTable.of(self)


@dataclass(frozen=True)
class BlockTable:
    """Every block of a model, sorted by layer, then kind (attention before mlp). B rows.

    block_layer: int64 (B,). block_kind: int8 (B,), 0 attention, 1 mlp (``core/kinds.py``). block_cost: int64 (B,),
    parameters of one group. widths: int64 (B,), groups of each block.
    """

    num_layers: int
    block_layer: np.ndarray = field(repr=False)
    block_kind: np.ndarray = field(repr=False)
    block_cost: np.ndarray = field(repr=False)
    widths: np.ndarray = field(repr=False)

    @staticmethod
    def of(architecture: Architecture) -> "BlockTable":
        counts = [len(layer.blocks) for layer in architecture.layers]
        return BlockTable(
            num_layers=architecture.num_layers,
            block_layer=np.repeat(np.arange(architecture.num_layers, dtype=np.int64), counts),
            block_kind=np.array([block.kind for block in architecture.blocks], dtype=np.int8),
            block_cost=np.array([block.cost for block in architecture.blocks], dtype=np.int64),
            widths=np.array([block.width for block in architecture.blocks], dtype=np.int64),
        )

    @property
    def num_blocks(self) -> int:
        return len(self.block_cost)

    @property
    def kinds(self) -> tuple[int, ...]:
        """The kinds that some layer has, ascending."""
        return tuple(np.unique(self.block_kind).tolist())

    def block_of(self, layer: int, kind: int) -> int:
        """The number of a block. ValueError where the layer has none of this kind."""
        try:
            return self._numbers[int(layer), int(kind)]
        except KeyError:
            raise ValueError(f"layer {layer} has no block of kind {TABLE[kind].name}") from None

    def blocks_of_kind(self, kind: int) -> np.ndarray:
        """int64 (n,): the blocks of one kind, ascending; not every layer need have one."""
        return np.flatnonzero(self.block_kind == kind)

    def kind_of(self, block: int) -> Kind:
        """What holds for all blocks of its kind."""
        return TABLE[self.block_kind[block]]

    def block_name(self, block: int) -> str:
        """``attention of layer 3``."""
        return f"{self.kind_of(block).name} of layer {self.block_layer[block]}"

    def layer_sums(self, values: np.ndarray) -> np.ndarray:
        """(L,), of their type: sums over each layer's blocks of values (B,); of truths, whether any holds."""
        sums = np.zeros(self.num_layers, dtype=values.dtype)
        np.add.at(sums, self.block_layer, values)
        return sums

    def spread(self, values: np.ndarray) -> np.ndarray:
        """(L, kinds, ...): values (B, ...) by layer and kind, as measurements of blocks are handed around.

        A column for each kind of the table up to the last that the model has; NaN, or False or 0, where a layer has
        no such block.
        """
        shape = (self.num_layers, max(self.kinds, default=-1) + 1, *values.shape[1:])
        table = np.full(shape, np.nan if values.dtype.kind == "f" else 0, dtype=values.dtype)
        table[self.block_layer, self.block_kind] = values
        return table

    def gathered(self, table: np.ndarray) -> np.ndarray:
        """(B, ...): the inverse of ``spread``."""
        return np.asarray(table[self.block_layer, self.block_kind])

    @cached_property
    def _numbers(self) -> Mapping[tuple[int, int], int]:
        pairs = zip(self.block_layer.tolist(), self.block_kind.tolist(), strict=True)
        return {pair: number for number, pair in enumerate(pairs)}


@dataclass(frozen=True)
class GroupTable(BlockTable):
    """Every group of a model, sorted by layer, then kind, then index: block after block. G rows.

    layer, index: int64 (G,). kind: int8 (G,), 0 attention, 1 mlp. cost: int64 (G,), parameters.
    block: int64 (G,), number of its block. block_start: int64 (B+1,); block b is rows block_start[b]:block_start[b+1].
    """

    layer: np.ndarray
    kind: np.ndarray
    index: np.ndarray
    cost: np.ndarray
    block: np.ndarray = field(repr=False)
    block_start: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.cost)

    @staticmethod
    def of(architecture: Architecture) -> "GroupTable":
        blocks = architecture.block_table
        start = np.concatenate([[0], np.cumsum(blocks.widths)]).astype(np.int64)
        block = np.repeat(np.arange(blocks.num_blocks, dtype=np.int64), blocks.widths)
        return GroupTable(
            num_layers=blocks.num_layers,
            block_layer=blocks.block_layer,
            block_kind=blocks.block_kind,
            block_cost=blocks.block_cost,
            widths=blocks.widths,
            layer=blocks.block_layer[block],
            kind=blocks.block_kind[block],
            index=np.arange(start[-1], dtype=np.int64) - start[block],
            cost=blocks.block_cost[block],
            block=block,
            block_start=start,
        )

    def rows_of(self, block: int) -> slice:
        """The rows of one block."""
        return slice(int(self.block_start[block]), int(self.block_start[block + 1]))

    def rows(self, layer: int, kind: int) -> slice:
        """The rows of one block. ValueError where the layer has none of this kind."""
        return self.rows_of(self.block_of(layer, kind))

    def rows_of_layer(self, layer: int) -> slice:
        """The rows of all blocks of a layer, which lie together."""
        first, end = np.searchsorted(self.layer, [layer, layer + 1])
        return slice(int(first), int(end))

    def by_block(self, values: np.ndarray) -> np.ndarray:
        """float64 (B,): sums over each block's groups of values (G,), numbers or truths."""
        return np.bincount(self.block, weights=values, minlength=self.num_blocks)

    def by_layer(self, values: np.ndarray) -> np.ndarray:
        """float64 (L,): sums over each layer's groups of values (G,), numbers or truths."""
        return np.bincount(self.layer, weights=values, minlength=self.num_layers)
