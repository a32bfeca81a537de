"""First- and second-order Taylor importance, reduced inside backward (Molchanov et al. 2019, arXiv:1906.10771).

    taylor       I_g = 1/N sum_n  sum_{w in g} |w * dL_n/dw|            one sequence n a backward pass
    sum          I_g =            sum_{w in g} |w * sum_n dL_n/dw|      (LLM-Pruner, arXiv:2305.11627)
    taylor_2nd   adds 1/2 sum_{w in g} w^2 * E_n[(dL_n/dw)^2]           (empirical Fisher as the Hessian's diagonal)

With ``sum`` the second-order term is summed over n as well, so both terms keep the same scale. L_n is the sum of the
NLL over the sequence's predicted tokens. A gradient lives only from its accumulation to the hook that reduces it.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from core.errors import NumericalError, UsageError
from core.families import OUT, Family, Member
from core.groups import Architecture
from core.measures import GRADIENTS_OF_WEIGHTS, GradientStatistics, Importance
from core.progress import tqdm
from core.windows import TokenWindows
from importance.measuring import (
    LayerGradients,
    NonFiniteGuard,
    checkpointed_layers,
    group_sums,
    halves_of,
    layers_to_recompute,
    left_as_found,
    summed_nll,
)


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
    prunable gradients). Raises UsageError when one window does
    not fit in memory, NumericalError when more than 5 % of the windows yield NaN or Inf; under ``sum`` a
    non-finite gradient stops the run at once, since it cannot be taken back out of the sum.
    """
    with left_as_found(model) as handles:
        reducer = _GradientReducer(model, family, architecture, second_order, keep_sum=reduction == "sum")
        reducer.attach(handles)
        guard = NonFiniteGuard(len(windows))
        gradients = LayerGradients(architecture.num_layers)
        device = next(model.parameters()).device
        recomputed = layers_to_recompute(model, architecture, windows.seq_len)
        rows = tqdm(windows.ids, desc=f"importance ({reducer.name})", unit="window", leave=False)
        for number, row in enumerate(rows):
            ids = torch.from_numpy(row[None]).to(device)
            loss: torch.Tensor | None
            try:
                loss = _backward(model, family, ids, recomputed)
            except torch.OutOfMemoryError:
                if recomputed == architecture.num_layers:
                    raise UsageError(
                        f"a window of {windows.seq_len} tokens does not fit in memory: name a shorter --seq_len"
                    ) from None
                loss = None
            if loss is None:  # outside the handler, which would still hold the tensors that filled the memory
                recomputed = architecture.num_layers
                reducer.forget_window()
                torch.cuda.empty_cache()
                loss = _backward(model, family, ids, recomputed)
            mean, norm = reducer.layer_statistics()
            if guard.admit(mean, bool(torch.isfinite(loss)), windows=1):
                reducer.keep_window(number)
                gradients.add(mean[None], norm[None])
            elif reduction == "sum":
                raise NumericalError("NaN or Inf cannot be taken out of a sum of gradients; try --dtype float32")
            reducer.forget_window()
        return reducer.result(gradients, guard)


def _backward(model: Any, family: Family, ids: torch.Tensor, recomputed: int) -> torch.Tensor:
    with torch.enable_grad(), checkpointed_layers(model, family, recomputed):
        loss = summed_nll(model, ids)
        loss.backward()
    return loss.detach()


class _GradientReducer:
    """Hooks that turn each prunable parameter's gradient into group sums and drop it."""

    def __init__(
        self, model: Any, family: Family, architecture: Architecture, second_order: bool, keep_sum: bool
    ) -> None:
        self.name = "taylor_2nd" if second_order else "taylor"
        self.second_order, self.keep_sum = second_order, keep_sum
        self.architecture = architecture
        self.members = list(_member_parameters(model, family))
        device = next(model.parameters()).device
        groups = len(architecture.groups)
        self.first = torch.zeros(groups, dtype=torch.float64, device=device)
        self.second = torch.zeros(groups, dtype=torch.float64, device=device)
        self.even = torch.zeros_like(self.first)  # of windows 0, 2, 4, ..., both terms
        self.counts = [0, 0]  # windows that count, even ones and odd ones
        self.window_first = torch.zeros_like(self.first)
        self.window_second = torch.zeros_like(self.second)
        # mean |g| and g^2 of the window, summed over each layer's prunable tensors
        self.window_l1 = torch.zeros(architecture.num_layers, dtype=torch.float64, device=device)
        self.window_l2 = torch.zeros_like(self.window_l1)
        self.sums: dict[nn.Parameter, torch.Tensor] = {}

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
        self.window_l1[layer] += torch.linalg.vector_norm(gradient, 1, dtype=torch.float32)
        self.window_l2[layer] += torch.linalg.vector_norm(gradient, 2, dtype=torch.float32).double() ** 2
        rows = self.architecture.groups.rows(layer, member.kind)
        if self.keep_sum:
            if parameter in self.sums:
                self.sums[parameter] += gradient
            else:
                self.sums[parameter] = gradient.clone()
        product = gradient.mul_(parameter.detach())  # in place: the gradient is ours and not needed again
        if self.second_order:
            self.window_second[rows] += self._groups(product.square(), layer, member)
        if not self.keep_sum:
            self.window_first[rows] += self._groups(product.abs_(), layer, member)

    def _groups(self, values: torch.Tensor, layer: int, member: Member) -> torch.Tensor:
        along_axis = values if values.ndim == 1 else values.sum(1 - member.axis)
        return group_sums(member, self.architecture.layers[layer], along_axis)

    def layer_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """mean |g| and L2 norm of the window's gradients, each float64 (L,)."""
        counts = np.array([layer.prunable_params for layer in self.architecture.layers])
        return self.window_l1.cpu().numpy() / counts, self.window_l2.sqrt().cpu().numpy()

    def keep_window(self, number: int) -> None:
        self.first += self.window_first
        self.second += self.window_second
        self.counts[number % 2] += 1
        if number % 2 == 0:
            self.even += self.window_first + 0.5 * self.window_second

    def forget_window(self) -> None:
        for buffer in (self.window_first, self.window_second, self.window_l1, self.window_l2):
            buffer.zero_()
        for _, _, parameter in self.members:
            parameter.grad = None

    def _halves(self) -> np.ndarray | None:
        return halves_of(self.even.cpu().numpy(), (self.first + 0.5 * self.second).cpu().numpy(), *self.counts)

    def result(self, gradients: LayerGradients, guard: NonFiniteGuard) -> Importance:
        n = max(gradients.windows, 1)
        if self.keep_sum:
            for layer, member, parameter in self.members:
                rows = self.architecture.groups.rows(layer, member.kind)
                total = self.sums.pop(parameter)
                self.first[rows] += self._groups(total.mul_(parameter.detach()).abs_(), layer, member)
        scale = 1.0 if self.keep_sum else 1.0 / n
        first = self.first.cpu().numpy() * scale
        second = 0.5 * self.second.cpu().numpy() * scale
        values = first + second
        return Importance(
            values=values,
            criterion=self.name,
            gradients=GradientStatistics(
                mean=gradients.mean / n,
                norm=gradients.norm / n,
                min=gradients.min,
                max=gradients.max,
                source=GRADIENTS_OF_WEIGHTS,
            ),
            windows_used=gradients.windows,
            windows_skipped=guard.skipped,
            halves=None if self.keep_sum else self._halves(),
            second_order_share=float(second.sum() / max(values.sum(), 1e-300)) if self.second_order else None,
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
