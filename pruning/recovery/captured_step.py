"""Loss and gradients of a batch by one launch (``core.graphs``): a small model's kernels compute for a fraction of the
time that it takes to launch them, and training launches the same ones again and again."""

from collections.abc import Callable, Sequence

import torch

from core.graphs import Captured


class CapturedStep:
    """loss_of: of ids (B, T), a tensor () with a graph of autograd's. Gradients are added to those there are, as
    ``backward`` adds them."""

    def __init__(
        self,
        loss_of: Callable[[torch.Tensor], torch.Tensor],
        parameters: Sequence[torch.nn.Parameter],
        ids: torch.Tensor,
    ) -> None:
        """RuntimeError where this cannot be captured, or memory does not suffice."""
        self.loss_of, self.parameters = loss_of, parameters
        self.ids, self.weight = ids.clone(), torch.ones((), device=ids.device)
        self.gradients = [torch.zeros_like(parameter) for parameter in parameters]
        self._hand_out()
        try:
            self.graph = Captured(self._work, ids.device, self._warm_up)
        finally:
            for parameter in parameters:
                parameter.grad = None

    def __call__(self, ids: torch.Tensor, weight: float) -> torch.Tensor:
        """float32 (): the loss times ``weight``, its gradients added."""
        if self.parameters[0].grad is None:
            torch._foreach_zero_(self.gradients)
            self._hand_out()
        self.ids.copy_(ids)
        self.weight.fill_(weight)
        self.graph.replay()
        return self.graph.result * self.weight

    def _warm_up(self) -> None:
        self._work()
        if self.ids.is_cuda:
            torch.cuda.empty_cache()  # activations of the graph have memory of their own

    def _hand_out(self) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def _work(self) -> torch.Tensor:
        loss = self.loss_of(self.ids)
        loss.backward(self.weight)
        return loss.detach()
