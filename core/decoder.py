"""A model seen as layers of blocks: where each layer's blocks are, what they are made of, and on which device.

Needs no torch of its own. A model on the meta device will do: no weight is read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from core.errors import ModelError
from core.families import IN, Family
from core.groups import Architecture, Block, LayerShape
from core.kinds import TABLE


@dataclass(frozen=True)
class Decoder:
    """model: a causal LM of ``family`` (or one of our pruned classes of it), its weights anywhere, even nowhere.

    Layers are numbered as they stand in the model, kinds of block as in ``core/kinds.py``. Nothing of the model is
    copied or changed.
    """

    model: Any
    family: Family

    @cached_property
    def layers(self) -> list[Any]:
        """The decoder layer modules in order."""
        return list(self.model.get_submodule(self.family.layers))

    @cached_property
    def architecture(self) -> Architecture:
        """Every group's parameters counted from the tensors, biases included; tied weights count once.

        Raises ModelError when a layer lacks a module that the family's row names (a mixture of experts, say).
        """
        return Architecture(
            model_type=self.family.model_type,
            hidden_size=self.model.config.hidden_size,
            total_params=_size(self.model),
            layers=tuple(self._shape(index) for index in range(len(self.layers))),
        )

    def blocks(self, layer: int) -> tuple[Block, ...]:
        """What a layer is made of, ascending by kind."""
        return self.architecture.layers[layer].blocks

    def output(self, layer: int, kind: int) -> Any:
        """The module by which a block writes to the residual stream (``o_proj``, ``down_proj``): its input columns are
        the block's groups."""
        return self.layers[layer].get_submodule(self.family.output(kind).path)

    def readers(self, layer: int, kind: int) -> list[Any]:
        """The modules of a block that read its input: their output rows are the block's groups."""
        return [self.layers[layer].get_submodule(member.path) for member in self.family.readers(kind)]

    def device_of(self, layer: int) -> Any:
        """The torch device that a layer's parameters are on; layers of one model may differ."""
        return next(self.layers[layer].parameters()).device

    # Measuring

    def _shape(self, index: int) -> LayerShape:
        layer = self.layers[index]
        try:
            blocks = [self._block(layer, kind) for kind in self.family.kinds]
        except AttributeError as error:
            raise ModelError(
                f"layer {index} is not laid out like a {self.family.model_type} layer ({error}); "
                "only dense decoder layers of the supported families can be pruned"
            ) from error
        return LayerShape.of(blocks, _size(layer) - sum(block.total_params for block in blocks))

    def _block(self, layer: Any, kind: int) -> Block:
        """A block, measured: its groups are the columns of its writing projection."""
        module = layer.get_submodule(self.family.module(kind))
        rows = {part: _product(module, names) for part, names in TABLE[kind].parts.items()}
        columns = int(layer.get_submodule(self.family.output(kind).path).in_features)
        width = columns // rows[TABLE[kind].output_part]
        owned = sum(_owned(layer.get_submodule(m.path), m.axis) for m in self.family.members_of(kind))
        cost = owned // width
        return Block(kind, width, cost, _size(module) - width * cost, tuple(rows.items()))


def _product(module: Any, names: Sequence[str]) -> int:
    return math.prod(int(getattr(module, name)) for name in names)


def _owned(linear: Any, axis: int) -> int:
    """Parameters of a member that groups own: a bias is cut with the output axis and left alone by the input axis."""
    return int(linear.weight.numel()) + (int(linear.bias.numel()) if linear.bias is not None and axis != IN else 0)


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
