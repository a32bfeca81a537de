"""The kinds of block, a row each: all that the program knows of one kind and not of another.

A block is all groups of one kind in one layer; code names a kind by its position in TABLE (ATTENTION, MLP). Whatever
differs between kinds is read from the row, so a new kind is a new row: scores, plans, plan files, reports and pictures
follow by themselves. Rows are never reordered, as positions are written into ``groups.parquet``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

ATTENTION, MLP = 0, 1

Rows = Mapping[str, int]  # part -> rows that one group owns in it


@dataclass(frozen=True)
class Kind:
    """One kind of block.

    name: in tables and JSON. title, unit: of a picture or a table's column. noun: one group, in messages.
    width_noun: the number of groups, in messages.

    parts: the parts that its members are stacked of (``core/families.py``), each with the attributes of the block's
    module whose product is the rows of one group; no attribute is one row.
    output_part: the part that the input columns of the block's writing projection are.

    counts(width, rows): what narrows with the block, by its key in reports; ``width_key`` is one of them.
    constants(rows): what does not. kept_key, cost_key, fixed_key: keys in plan files of the groups that stay, of the
    parameters of one group, and of those that no group owns.

    floor, step, widths: the fields of ``pruning.limits.Limits`` that bound it: groups that a block retains, groups in
    a step, and the widths to choose from where all layers are to be equal. None: 1, 1 and any.
    """

    name: str
    title: str
    noun: str
    unit: str
    width_noun: str
    parts: Mapping[str, tuple[str, ...]]
    output_part: str
    counts: Callable[[int, Rows], dict[str, int]]
    width_key: str
    kept_key: str
    cost_key: str
    fixed_key: str
    constants: Callable[[Rows], dict[str, int]] = lambda _: {}
    floor: str | None = None
    step: str | None = None
    widths: str | None = None

    def counted(self, count: int) -> str:
        """How messages name groups: "a channel", "64 channels"."""
        article = "an" if self.noun[0] in "aeiou" else "a"
        return f"{article} {self.noun}" if count == 1 else f"{count} {self.noun}s"


TABLE: list[Kind] = [
    Kind(
        name="attention",
        title="attention",
        noun="KV group",
        unit="KV heads",
        width_noun="number of KV groups",
        parts={"query": ("num_key_value_groups", "head_dim"), "kv": ("head_dim",)},
        output_part="query",
        counts=lambda width, rows: {"num_heads": width * rows["query"] // rows["kv"], "num_kv_heads": width},
        constants=lambda rows: {"head_dim": rows["kv"]},
        width_key="num_kv_heads",
        kept_key="kept_kv_heads",
        cost_key="kv_group_params",
        fixed_key="attention_fixed_params",
        floor="min_kv_heads",
        step="kv_round_to",
        widths="kv_widths",
    ),
    Kind(
        name="mlp",
        title="MLP",
        noun="channel",
        unit="channels",
        width_noun="MLP width",
        parts={"channel": ()},
        output_part="channel",
        counts=lambda width, _: {"intermediate_size": width},
        width_key="intermediate_size",
        kept_key="kept_channels",
        cost_key="channel_params",
        fixed_key="mlp_fixed_params",
        step="round_to",
    ),
]


def kind_of_part(part: str) -> int:
    """The kind whose members are stacked of such parts."""
    return next(kind for kind, row in enumerate(TABLE) if part in row.parts)
