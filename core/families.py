"""What a model family is, as data: where its tensors are and how a group's rows lie in them.

A *member* is one linear module of a decoder layer. Its weight is cut along one axis; that axis is a stack of
*parts*, and every part is K (or F) equal runs of rows, one run a group:

    query    K runs of (H/K)*D rows   the query heads of one KV head lie together
    kv       K runs of D rows         one key or value head
    channel  F runs of 1 row

so phi3's fused ``qkv_proj`` is the parts (query, kv, kv) and a separate ``q_proj`` is (query,). A bias is cut
with the output axis and left alone by the input axis.
"""

from dataclasses import dataclass

import numpy as np

from core.groups import ATTENTION, MLP, LayerShape
from core.kinds import TABLE, kind_of_part

OUT, IN = 0, 1  # axes of nn.Linear.weight: (out_features, in_features)


@dataclass(frozen=True)
class Member:
    """One linear module of a decoder layer; ``path`` is relative to the layer."""

    path: str
    axis: int
    parts: tuple[str, ...]

    @property
    def kind(self) -> int:
        return kind_of_part(self.parts[0])


@dataclass(frozen=True)
class Family:
    """One supported ``model_type``: class names, module paths, members.

    pre_mlp_norm: the layer's norm whose input is the residual stream between attention and MLP.
    output_norms: the layer's norms between o_proj, down_proj and the residual stream, by kind; None without such.
    per_layer_lists: config attributes that hold one entry per layer and must follow the layers that remain.
    """

    model_type: str
    class_prefix: str
    config_class: str
    base_class: str
    members: tuple[Member, ...]
    pre_mlp_norm: str = "post_attention_layernorm"
    output_norms: tuple[str, str] | None = None
    layers: str = "model.layers"
    attention: str = "self_attn"
    mlp: str = "mlp"
    per_layer_lists: tuple[str, ...] = ("layer_types",)

    @property
    def kinds(self) -> tuple[int, ...]:
        """The kinds of block that its layers have, ascending."""
        return tuple(sorted({member.kind for member in self.members}))

    def members_of(self, kind: int) -> tuple[Member, ...]:
        """The modules that one kind of block is cut in."""
        return tuple(member for member in self.members if member.kind == kind)

    def module(self, kind: int) -> str:
        """Path of the module that holds a block, fixed parameters included: its field of the kind's name."""
        return str(getattr(self, TABLE[kind].name))

    def output(self, kind: int) -> Member:
        """The writing projection of a block: the module whose input columns are its groups."""
        return next(member for member in self.members_of(kind) if member.axis == IN)

    def readers(self, kind: int) -> tuple[Member, ...]:
        """The modules of a block that read its input: their output rows are its groups."""
        return tuple(member for member in self.members_of(kind) if member.axis == OUT)

    @property
    def attention_output(self) -> str:
        """Path of the module whose input columns are the attention groups (``o_proj``)."""
        return self.output(ATTENTION).path

    @property
    def mlp_output(self) -> str:
        """Path of the module whose input columns are the MLP channels (``down_proj``)."""
        return self.output(MLP).path


def rows_per_group(part: str, shape: LayerShape) -> int:
    """Rows of one group inside one part."""
    return shape.block(kind_of_part(part)).rows_per_group(part)


def member_rows(member: Member, shape: LayerShape, kept: np.ndarray) -> np.ndarray:
    """Positions along ``member.axis`` that the kept groups own, int64, ascending inside each part.

    kept: ascending group indices of the member's block. With every group kept this is 0, 1, ..., size - 1.
    """
    block = shape.block(member.kind)
    positions, start = [], 0
    for part in member.parts:
        run = block.rows_per_group(part)
        positions.append((start + kept[:, None] * run + np.arange(run)).reshape(-1))
        start += block.width * run
    return np.concatenate(positions).astype(np.int64)
