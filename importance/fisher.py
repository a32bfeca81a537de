"""Fisher importance from the inputs of o_proj and down_proj; no weight gradient is ever formed.

    I_g = E_n[ ( sum_t sum_{j in g} a_tj * dL_n/da_tj )^2 ]

a is the input of ``o_proj`` (attention) or ``down_proj`` (mlp), j runs over the group's inputs (one for a channel,
H/K*D for a KV group), both sums inside the square. sum_t a_tj dL/da_tj = sum_d w_dj dL/dw_dj, the loss's derivative
when column j is scaled, so this is the Fisher information of the group's mask (Kwon et al. 2022, arXiv:2204.09656).
"""

from collections.abc import Iterable
from typing import Any

import torch

from core.families import Family, Member
from core.groups import Architecture
from core.measured import GRADIENTS_OF_INPUTS, Importance
from core.say import heard_here
from core.windows import TokenWindows
from importance.gradient_scale import GradientNorms
from importance.over_windows import Key, Measurement, by_group, over_windows
from importance.passes import Backward, Batch
from importance.reductions import products_summed
from importance.sums import group_sums, output_projections


def fisher_importance(
    model: Any,
    family: Family,
    architecture: Architecture,
    windows: TokenWindows,
    *,
    batch_size: int | None = None,
) -> Importance:
    """Measure in one pass with all weights frozen. The result does not depend on batch_size, beyond rounding.

    Raises NumericalError when more than 5 % of the windows yield NaN or Inf.
    """
    squares = _Squares(model, family, architecture)
    run = Backward(model, family, architecture)
    tally = over_windows(model, windows, run, squares, batch_size=batch_size, description="importance (fisher)")
    total, even = by_group(architecture, squares.total), by_group(architecture, squares.even)
    return Importance(
        values=total / max(tally.used, 1),
        criterion="fisher",
        gradients=tally.gradients,
        windows_used=tally.used,
        windows_skipped=tally.skipped,
        halves=tally.halves(even, total),
    )


class _Squares(Measurement):
    """Hooks on the inputs of o_proj and down_proj: when an input's gradient arrives, reduce it to group values.

    total, even: float64 (K or F,) by block, summed over all windows and over the even ones.
    """

    sees, scales = "gradients", True

    def __init__(self, model: Any, family: Family, architecture: Architecture) -> None:
        self.outputs = list(output_projections(model, family))
        self.architecture = architecture
        self.norms: GradientNorms = GradientNorms(architecture.num_layers, GRADIENTS_OF_INPUTS)
        self.layers = range(architecture.num_layers)
        self.total: dict[Key, torch.Tensor] = {}
        self.even: dict[Key, torch.Tensor] = {}
        self.squared: dict[Key, torch.Tensor] = {}

    def begin(self, layer: int) -> None:
        for _, member, module in (found for found in self.outputs if found[0] == layer):
            width = self.architecture.layers[layer].widths[member.kind]
            for sums in (self.total, self.even):
                sums[layer, member.kind] = torch.zeros(width, dtype=torch.float64, device=module.weight.device)

    def attach(self, handles: list[Any]) -> None:
        for layer, member, module in self.outputs:
            handles.append(
                module.register_forward_pre_hook(
                    lambda _module, args, layer=layer, member=member: self._watch(args, layer, member)
                )
            )

    def _watch(self, args: tuple[Any, ...], layer: int, member: Member) -> tuple[Any, ...] | None:
        if not torch.is_grad_enabled():  # first half of a checkpointed layer; the recomputation comes with gradients
            return None
        inputs = args[0]
        # Weights are frozen, so gradients start at the first input that asks for one: nothing before it is computed.
        watched = inputs if inputs.requires_grad else inputs.detach().requires_grad_()
        values = watched.detach()  # a hook that held ``watched`` would keep itself and the graph alive
        watched.register_hook(heard_here(lambda gradient: self._reduce(values, gradient, layer, member)))
        return (watched, *args[1:])

    def _reduce(self, inputs: torch.Tensor, gradient: torch.Tensor, layer: int, member: Member) -> None:
        per_input, l1, l2 = products_summed(gradient, inputs, 1, absolute=False)  # (B, rows): sum over tokens
        per_group = group_sums(member, self.architecture.layers[layer], per_input)  # (B, K or F)
        self.squared[layer, member.kind] = per_group.double().square()
        self.norms.add(layer, l1, l2, gradient[0].numel())

    def start(self, batch: Batch) -> None:
        self.squared.clear()
        self.norms.start()

    def seen(self) -> Iterable[tuple[int, torch.Tensor]]:
        return ((layer, squared) for (layer, _), squared in self.squared.items())

    def keep(self, batch: Batch) -> None:
        for key, squared in self.squared.items():
            self.total[key].add_(squared.sum(0), alpha=batch.scale**-2)
            self.even[key].add_(squared[batch.half(0)].sum(0), alpha=batch.scale**-2)

    def sums(self, layer: int | None) -> Iterable[torch.Tensor]:
        return (sums[key] for sums in (self.total, self.even) for key in sorted(sums) if key[0] == layer)
