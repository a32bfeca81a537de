"""First- and second-order Taylor importance, reduced inside backward (Molchanov et al. 2019, arXiv:1906.10771).

    taylor       I_g = 1/N sum_n  sum_{w in g} |w * dL_n/dw|            one sequence n a backward pass
    sum          I_g =            sum_{w in g} |w * sum_n dL_n/dw|      (LLM-Pruner, arXiv:2305.11627)
    taylor_2nd   adds 1/2 sum_{w in g} w^2 * E_n[(dL_n/dw)^2]           (empirical Fisher as the Hessian's diagonal)

With ``sum`` the second-order term is summed over n as well, so both terms keep the same scale. L_n is the sum of the
NLL over the sequence's predicted tokens. A gradient lives only from its accumulation to the hook that reduces it.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from core.families import OUT, Family, Member
from core.groups import Architecture
from core.measured import GRADIENTS_OF_WEIGHTS, Importance
from core.windows import TokenWindows
from importance.over_windows import GradientNorms, Key, Measurement, Tally, by_group, over_windows
from importance.passes import Backward, Batch
from importance.sums import group_sums


def taylor_importance(
    model: Any,
    family: Family,
    architecture: Architecture,
    windows: TokenWindows,
    *,
    second_order: bool = False,
    reduction: str = "sequence",
) -> Importance:
    """Measure the group importances, and each layer's raw weight gradients, in one pass of N backward passes.

    reduction: ``sequence`` (no run holds a second copy of the weights) or ``sum`` (holds one float32 copy of the
    prunable gradients). Raises UsageError when one window does not fit in memory, NumericalError when more than 5 % of
    the windows yield NaN or Inf; under ``sum`` a non-finite gradient stops the run at once, since it cannot be taken
    back out of the sum.
    """
    products = _Products(model, family, architecture, second_order, keep_sum=reduction == "sum")
    name = "taylor_2nd" if second_order else "taylor"
    run = Backward(model, family, architecture)
    tally = over_windows(model, windows, run, products, batch_size=1, description=f"importance ({name})")
    return products.result(name, tally)


class _Products(Measurement):
    """Hooks that turn each prunable parameter's gradient into group sums of w * g, and drop it.

    first, second: float64 (K or F,) by block, sums over windows of |w g| and of (w g)^2. even: of windows 0, 2, 4, ...,
    both terms. sums: the gradients themselves, summed over windows, under ``keep_sum``.
    """

    sees, scales = "gradients", True

    def __init__(
        self, model: Any, family: Family, architecture: Architecture, second_order: bool, keep_sum: bool
    ) -> None:
        self.second_order, self.keep_sum = second_order, keep_sum
        self.repeatable = not keep_sum
        self.architecture = architecture
        self.members = list(_member_parameters(model, family))
        self.norms: GradientNorms = GradientNorms(architecture.num_layers, GRADIENTS_OF_WEIGHTS)
        self.first = {
            (layer, member.kind): torch.zeros(
                architecture.layers[layer].widths[member.kind], dtype=torch.float64, device=parameter.device
            )
            for layer, member, parameter in self.members
        }
        self.second, self.even = ({key: torch.zeros_like(sums) for key, sums in self.first.items()} for _ in range(2))
        self.window: tuple[dict[Key, torch.Tensor], dict[Key, torch.Tensor]] = ({}, {})  # both terms
        self.sums: dict[nn.Parameter, torch.Tensor] = {}
        self.scale = 1.0

    def attach(self, handles: list[Any]) -> None:
        for layer, member, parameter in self.members:
            parameter.requires_grad_(True)
            handles.append(
                parameter.register_post_accumulate_grad_hook(
                    lambda parameter, layer=layer, member=member: self._reduce(parameter, layer, member)
                )
            )

    def _reduce(self, parameter: nn.Parameter, layer: int, member: Member) -> None:
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad.float(), None
        l1, l2 = (torch.linalg.vector_norm(gradient, order, dtype=torch.float32) for order in (1, 2))
        self.norms.add(layer, l1[None], l2[None], gradient.numel())
        if self.keep_sum:
            if parameter in self.sums:
                self.sums[parameter].add_(gradient, alpha=1 / self.scale)
            else:
                self.sums[parameter] = gradient / self.scale
        product = gradient.mul_(parameter.detach())  # in place: the gradient is ours and not needed again
        if self.second_order:
            self._add(1, layer, member, product.square())
        if not self.keep_sum:
            self._add(0, layer, member, product.abs_())

    def _add(self, term: int, layer: int, member: Member, values: torch.Tensor) -> None:
        key, sums = (layer, member.kind), self._groups(values, layer, member)
        seen = self.window[term]
        seen[key] = seen[key] + sums if key in seen else sums.double()

    def _groups(self, values: torch.Tensor, layer: int, member: Member) -> torch.Tensor:
        along_axis = values if values.ndim == 1 else values.sum(1 - member.axis)
        return group_sums(member, self.architecture.layers[layer], along_axis)

    def start(self, batch: Batch) -> None:
        self.scale = batch.scale
        for seen in self.window:
            seen.clear()
        self.norms.start()
        for _, _, parameter in self.members:
            parameter.grad = None

    def seen(self) -> Iterable[tuple[int, torch.Tensor]]:
        return ((layer, sums) for seen in self.window for (layer, _), sums in seen.items())

    def keep(self, batch: Batch) -> None:
        first, second = self.window
        for key, values in first.items():
            self.first[key].add_(values, alpha=1 / batch.scale)
        for key, values in second.items():
            self.second[key].add_(values, alpha=batch.scale**-2)
        if batch.first % 2 == 0 and not self.keep_sum:
            for key, values in first.items():
                both = values / batch.scale
                self.even[key] += both + 0.5 * batch.scale**-2 * second[key] if second else both

    def result(self, name: str, tally: Tally) -> Importance:
        if self.keep_sum:
            for layer, member, parameter in self.members:
                total = self.sums.pop(parameter)
                self.first[layer, member.kind] += self._groups(total.mul_(parameter.detach()).abs_(), layer, member)
        scale = 1.0 if self.keep_sum else 1.0 / max(tally.used, 1)
        first, second, even = (by_group(self.architecture, sums) for sums in (self.first, self.second, self.even))
        terms = first * scale, 0.5 * second * scale
        values = terms[0] + terms[1]
        return Importance(
            values=values,
            criterion=name,
            gradients=tally.gradients,
            windows_used=tally.used,
            windows_skipped=tally.skipped,
            halves=None if self.keep_sum else tally.halves(even, first + 0.5 * second),
            second_order_share=float(terms[1].sum() / max(values.sum(), 1e-300)) if self.second_order else None,
        )


def _member_parameters(model: Any, family: Family) -> list[tuple[int, Member, nn.Parameter]]:
    """(layer, member, parameter) of every prunable tensor: weights, and biases along the output axis."""
    found = []
    for index, layer in enumerate(model.get_submodule(family.layers)):
        for member in family.members:
            module = layer.get_submodule(member.path)
            found.append((index, member, module.weight))
            if member.axis == OUT and module.bias is not None:
                found.append((index, member, module.bias))
    return found
