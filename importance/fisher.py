"""Fisher importance from the inputs of o_proj and down_proj; no weight gradient is ever formed.

    I_g = E_n[ ( sum_t sum_{j in g} a_tj * dL_n/da_tj )^2 ]

a is the input of ``o_proj`` (attention) or ``down_proj`` (mlp), j runs over the group's inputs (one for a channel,
H/K*D for a KV group), both sums inside the square. sum_t a_tj dL/da_tj = sum_d w_dj dL/dw_dj, the loss's derivative
when column j is scaled, so this is the Fisher information of the group's mask (Kwon et al. 2022, arXiv:2204.09656).
"""

from typing import Any

import numpy as np
import torch

from core.batching import for_each_batch
from core.families import Family, Member
from core.groups import Architecture
from core.measures import GRADIENTS_OF_INPUTS, GradientStatistics, Importance
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


def fisher_importance(
    model: Any,
    family: Family,
    architecture: Architecture,
    windows: TokenWindows,
    *,
    batch_size: int | None = None,
) -> Importance:
    """Measure in one pass with all weights frozen. The result does not depend on batch_size, beyond rounding.

    Raises NumericalError when more than 5 % of the windows yield NaN or Inf (a batch is skipped as a whole).
    """
    device = next(model.parameters()).device
    total = torch.zeros(len(architecture.groups), dtype=torch.float64, device=device)
    even = torch.zeros_like(total)
    seen, counts = 0, [0, 0]
    gradients = LayerGradients(architecture.num_layers)
    guard = NonFiniteGuard(len(windows))
    with left_as_found(model) as handles:
        collector = _InputGradients(family, architecture, device)
        collector.attach(model, handles)

        def step(batch: np.ndarray) -> None:
            nonlocal seen
            collector.start(len(batch), seen % 2)
            ids = torch.from_numpy(batch).to(device)
            recomputed = layers_to_recompute(model, architecture, ids.numel())
            with torch.enable_grad(), checkpointed_layers(model, family, recomputed):
                loss = summed_nll(model, ids)
                loss.backward()
            mean, norm = collector.layer_statistics()
            if guard.admit(mean, bool(torch.isfinite(loss)), windows=len(batch)):
                total.add_(collector.squared)
                even.add_(collector.even)
                gradients.add(mean, norm)
                for number in range(seen, seen + len(batch)):
                    counts[number % 2] += 1
            seen += len(batch)

        for_each_batch(windows.ids, step, batch_size, "importance (fisher)")
    n = max(gradients.windows, 1)
    return Importance(
        values=total.cpu().numpy() / n,
        criterion="fisher",
        gradients=GradientStatistics(
            gradients.mean / n, gradients.norm / n, gradients.min, gradients.max, GRADIENTS_OF_INPUTS
        ),
        windows_used=gradients.windows,
        windows_skipped=guard.skipped,
        halves=halves_of(even.cpu().numpy(), total.cpu().numpy(), *counts),
    )


class _InputGradients:
    """Hooks on the inputs of o_proj and down_proj: when an input's gradient arrives, reduce it to group values."""

    def __init__(self, family: Family, architecture: Architecture, device: torch.device) -> None:
        outputs = (family.attention_output, family.mlp_output)
        self.family, self.architecture, self.device = family, architecture, device
        self.members = [member for member in family.members if member.path in outputs]
        self.start(0)

    def start(self, batch: int, first: int = 0) -> None:
        """first: 1 where the batch begins with an odd window."""
        layers = self.architecture.num_layers
        self.squared = torch.zeros(len(self.architecture.groups), dtype=torch.float64, device=self.device)
        self.even, self.first = torch.zeros_like(self.squared), first
        self.l1 = torch.zeros(batch, layers, dtype=torch.float64, device=self.device)
        self.l2 = torch.zeros_like(self.l1)
        self.count = np.zeros(layers)

    def attach(self, model: Any, handles: list[Any]) -> None:
        for index, layer in enumerate(model.get_submodule(self.family.layers)):
            for member in self.members:
                handles.append(
                    layer.get_submodule(member.path).register_forward_pre_hook(
                        lambda _module, args, index=index, member=member: self._watch(args, index, member)
                    )
                )

    def _watch(self, args: tuple[Any, ...], layer: int, member: Member) -> tuple[Any, ...] | None:
        if not torch.is_grad_enabled():  # first half of a checkpointed layer; the recomputation comes with gradients
            return None
        inputs = args[0]
        # Weights are frozen, so gradients start at the first input that asks for one: nothing before it is computed.
        watched = inputs if inputs.requires_grad else inputs.detach().requires_grad_()
        values = watched.detach()  # a hook that held ``watched`` would keep itself and the graph alive
        watched.register_hook(lambda gradient: self._reduce(values, gradient, layer, member))
        return (watched, *args[1:])

    def _reduce(self, inputs: torch.Tensor, gradient: torch.Tensor, layer: int, member: Member) -> None:
        gradient = gradient.float()
        per_input = (inputs.float() * gradient).sum(1)  # (B, rows): sum over tokens
        per_group = group_sums(member, self.architecture.layers[layer], per_input)  # (B, K or F)
        rows, squared = self.architecture.groups.rows(layer, member.kind), per_group.double().square()
        self.squared[rows] += squared.sum(0)
        self.even[rows] += squared[self.first :: 2].sum(0)
        self.l1[:, layer] += torch.linalg.vector_norm(gradient, 1, dim=(1, 2))
        self.l2[:, layer] += torch.linalg.vector_norm(gradient, 2, dim=(1, 2)).double().square()
        self.count[layer] += gradient[0].numel()

    def layer_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """mean |g| and L2 norm of the watched inputs' gradients, each float64 (B, L)."""
        return self.l1.cpu().numpy() / np.maximum(self.count, 1), self.l2.sqrt().cpu().numpy()
