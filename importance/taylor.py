"""First- and second-order Taylor importance, reduced inside backward (Molchanov et al. 2019, arXiv:1906.10771).

    taylor       I_g = 1/N sum_n  sum_{w in g} |w * dL_n/dw|            one sequence n a backward pass
    sum          I_g =            sum_{w in g} |w * sum_n dL_n/dw|      (LLM-Pruner, arXiv:2305.11627)
    taylor_2nd   adds 1/2 sum_{w in g} w^2 * E_n[(dL_n/dw)^2]           (empirical Fisher as the Hessian's diagonal)

With ``sum`` the second-order term is summed over n as well, so both terms keep the same scale. L_n is the sum of the
NLL over the sequence's predicted tokens.

Weights are frozen: dL_n/dW = sum_t (dL_n/dy_t) x_t^T is formed for each window n from the inputs x and the gradients at
the outputs y of W's module, and lives until it is reduced. So several windows may share a pass, which small models on a
GPU need, where launching kernels takes longer than running them. On a CPU a pass takes one window.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from core.families import OUT, Family, Member
from core.groups import Architecture
from core.measured import GRADIENTS_OF_WEIGHTS, Importance
from core.products import window_products
from core.say import heard_here
from core.windows import TokenWindows
from importance.gradient_scale import GradientNorms
from importance.over_windows import Key, Measurement, by_group, over_windows
from importance.passes import Backward, Batch
from importance.reductions import piece_rows, products_summed, sums_of_absolutes, window_norms
from importance.sums import group_sums
from importance.tally import Tally


def taylor_importance(
    model: Any,
    family: Family,
    architecture: Architecture,
    windows: TokenWindows,
    *,
    second_order: bool = False,
    reduction: str = "sequence",
    batch_size: int | None = None,
) -> Importance:
    """Measure the group importances, and each layer's raw weight gradients. The result does not depend on batch_size,
    beyond rounding.

    reduction: ``sequence`` (no run holds a second copy of the weights) or ``sum`` (holds one float32 copy of the
    prunable gradients, and takes one window a pass). Raises UsageError when one window does not fit in memory,
    NumericalError when more than 5 % of the windows yield NaN or Inf; under ``sum`` a non-finite gradient stops the run
    at once, since it cannot be taken back out of the sum.
    """
    products = _Products(model, family, architecture, second_order, keep_sum=reduction == "sum")
    name = "taylor_2nd" if second_order else "taylor"
    run = Backward(model, family, architecture)
    if reduction == "sum" or (batch_size is None and run.device.type == "cpu"):
        batch_size = 1
    tally = over_windows(model, windows, run, products, batch_size=batch_size, description=f"importance ({name})")
    return products.result(name, tally)


class _Products(Measurement):
    """Hooks that make each window's weight gradients from a module's inputs and its outputs' gradients, and reduce
    them.

    first, second: float64 (K or F,) by block, sums over windows of |w g| and of (w g)^2. even: of windows 0, 2, 4, ...,
    both terms. window: both terms of the batch's windows, float64 (B, K or F). sums: the gradients themselves, summed
    over windows, under ``keep_sum``.
    """

    sees, scales = "gradients", True

    def __init__(
        self, model: Any, family: Family, architecture: Architecture, second_order: bool, keep_sum: bool
    ) -> None:
        self.second_order, self.keep_sum = second_order, keep_sum
        self.read_once = not second_order and not keep_sum
        self.repeatable = not keep_sum
        self.architecture = architecture
        self.modules = list(_member_modules(model, family))
        self.norms: GradientNorms = GradientNorms(architecture.num_layers, GRADIENTS_OF_WEIGHTS)
        self.layers = range(architecture.num_layers)
        self.first: dict[Key, torch.Tensor] = {}
        self.second: dict[Key, torch.Tensor] = {}
        self.even: dict[Key, torch.Tensor] = {}
        self.window: tuple[dict[Key, torch.Tensor], dict[Key, torch.Tensor]] = ({}, {})
        self.gradient_sums: dict[torch.Tensor, torch.Tensor] = {}
        self.scale = 1.0

    def begin(self, layer: int) -> None:
        for member, module in self._of_layer(layer):
            width = self.architecture.layers[layer].block(member.kind).width
            for sums in (self.first, self.second, self.even):
                sums[layer, member.kind] = torch.zeros(width, dtype=torch.float64, device=module.weight.device)
            for parameter in _prunable(member, module):
                self.gradient_sums.pop(parameter, None)

    def _of_layer(self, layer: int) -> list[tuple[Member, nn.Linear]]:
        return [(member, module) for index, member, module in self.modules if index == layer]

    def attach(self, handles: list[Any]) -> None:
        for layer, member, module in self.modules:
            handles.append(
                module.register_forward_hook(
                    lambda module, args, output, layer=layer, member=member: self._watch(
                        module, layer, member, args[0], output
                    )
                )
            )

    def _watch(
        self, module: nn.Linear, layer: int, member: Member, inputs: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor | None:
        if not torch.is_grad_enabled():  # first half of a checkpointed layer; the recomputation comes with gradients
            return None
        # Weights are frozen, so gradients start at the first output that asks for one: nothing before it is computed.
        watched = output if output.requires_grad else output.detach().requires_grad_()
        values = inputs.detach()  # a hook that held ``inputs`` would keep the graph alive
        watched.register_hook(heard_here(lambda gradient: self._reduce(module, layer, member, values, gradient)))
        return watched

    def _reduce(
        self, module: nn.Linear, layer: int, member: Member, inputs: torch.Tensor, outputs: torch.Tensor
    ) -> None:
        """inputs (B, T, I); outputs (B, T, O), gradients."""
        for term, sums in enumerate(self._of_weight(module.weight, layer, member, inputs, outputs)):
            self._add(term, layer, member, sums)
        if member.axis == OUT and module.bias is not None:
            gradient = outputs.sum(1, dtype=torch.float32)
            for term, sums in enumerate(self._terms(module.bias, ..., gradient, layer)):
                self._add(term, layer, member, sums)

    def _of_weight(
        self, weight: torch.Tensor, layer: int, member: Member, inputs: torch.Tensor, outputs: torch.Tensor
    ) -> list[torch.Tensor]:
        """Both terms, (B, rows along the member's axis). The gradient exists a piece at a time."""
        rows, others = weight.shape[member.axis], weight.shape[1 - member.axis]
        pieces = []
        for piece in piece_rows(rows, 4 * len(inputs) * others, weight.device, read_once=self.read_once):
            part = slice(piece.start, piece.stop)
            index = (part,) if member.axis == OUT else (slice(None), part)
            d, x = (outputs[..., part], inputs) if member.axis == OUT else (outputs, inputs[..., part])
            pieces.append(self._terms(weight, index, window_products(d.transpose(1, 2), x), layer, 2 - member.axis))
        return [torch.cat(terms, 1) if len(terms) > 1 else terms[0] for terms in zip(*pieces, strict=True)]

    def _terms(
        self, parameter: torch.Tensor, index: Any, gradient: torch.Tensor, layer: int, dim: int | None = None
    ) -> list[torch.Tensor]:
        """Of gradient, float32 (B, ...) of parameter[index], both terms summed over ``dim``, none where nothing is."""
        if dim is not None and self.read_once:
            sums, l1, l2 = products_summed(gradient, parameter.detach()[index], dim, absolute=True)
            self.norms.add(layer, l1, l2, gradient[0].numel())
            return [sums]
        self.norms.add(layer, *window_norms(gradient), gradient[0].numel())
        if self.keep_sum:
            self._sum_of(parameter)[index] += gradient.sum(0) / self.scale
        product = gradient.mul_(parameter.detach()[index])  # in place: the gradient is ours and not needed again
        second = [product.square() if dim is None else product.square().sum(dim)] if self.second_order else []
        return [product.abs_() if dim is None else sums_of_absolutes(product, dim), *second]

    def _sum_of(self, parameter: torch.Tensor) -> torch.Tensor:
        """float32, of the gradients so far."""
        if parameter not in self.gradient_sums:
            self.gradient_sums[parameter] = torch.zeros_like(parameter, dtype=torch.float32)
        return self.gradient_sums[parameter]

    def _add(self, term: int, layer: int, member: Member, along_axis: torch.Tensor) -> None:
        if term == 0 and self.keep_sum:  # the sum's own absolute value comes at the end
            return
        key, sums = (layer, member.kind), group_sums(member, self.architecture.layers[layer], along_axis)
        seen = self.window[term]
        seen[key] = seen[key] + sums if key in seen else sums.double()

    def start(self, batch: Batch) -> None:
        self.scale = batch.scale
        for seen in self.window:
            seen.clear()
        self.norms.start()

    def begin_again(self) -> None:
        self.gradient_sums.clear()

    def seen(self) -> Iterable[tuple[int, torch.Tensor]]:
        return ((layer, sums) for seen in self.window for (layer, _), sums in seen.items())

    def keep(self, batch: Batch) -> None:
        first, second = self.window
        for key, values in first.items():
            self.first[key].add_(values.sum(0), alpha=1 / batch.scale)
        for key, values in second.items():
            self.second[key].add_(values.sum(0), alpha=batch.scale**-2)
        if self.keep_sum:
            return
        for key, values in first.items():
            both = values / batch.scale
            both = both + 0.5 * batch.scale**-2 * second[key] if second else both
            self.even[key] += both[batch.half(0)].sum(0)

    def sums(self, layer: int | None) -> Iterable[torch.Tensor]:
        for sums in (self.first, self.second, self.even):
            yield from (sums[key] for key in sorted(sums) if key[0] == layer)
        if self.keep_sum and layer is not None:
            yield from (self._sum_of(p) for member, module in self._of_layer(layer) for p in _prunable(member, module))

    def finish(self, layer: int, tally: Tally) -> None:
        """Under ``keep_sum``, the absolute value of what has been summed; gradients go."""
        if not self.keep_sum:
            return
        shape = self.architecture.layers[layer]
        for member, module in self._of_layer(layer):
            for parameter in _prunable(member, module):
                product = self.gradient_sums.pop(parameter).mul_(parameter.detach()).abs_()
                along_axis = product if product.ndim == 1 else product.sum(1 - member.axis)
                self.first[layer, member.kind] += group_sums(member, shape, along_axis)

    def result(self, name: str, tally: Tally) -> Importance:
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


def _member_modules(model: Any, family: Family) -> Iterator[tuple[int, Member, nn.Linear]]:
    """(layer, member, module) of every module that is cut."""
    for index, layer in enumerate(model.get_submodule(family.layers)):
        for member in family.members:
            yield index, member, layer.get_submodule(member.path)


def _prunable(member: Member, module: nn.Linear) -> list[torch.Tensor]:
    """The weight, and a bias along the output axis."""
    return [module.weight] if member.axis != OUT or module.bias is None else [module.weight, module.bias]
