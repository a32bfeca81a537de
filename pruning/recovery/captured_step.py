"""Loss and gradients of a batch by one launch (``core.graphs``): a small model's kernels compute for a fraction of the
time that it takes to launch them, and training launches the same ones again and again."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from core.attending import attending, attends_by_torch
from core.graphs import Captured

WHOLE = "whole_windows"


def can_capture(models: Sequence[Any], device: torch.device) -> bool:
    """Whether these do the same every time: attend by torch, with weights that stay where they are, on ``device``."""
    here = {values.device for model in models for values in model.parameters()}
    return attends_by_torch(*models) and here == {device}


class CapturedStep:
    """loss_of: of ids (B, T), windows that are not packed, by ``models``; a tensor () with a graph of autograd's.

    Gradients are added to those there are, as ``backward`` adds them.
    """

    def __init__(
        self,
        loss_of: Callable[[torch.Tensor], torch.Tensor],
        models: Sequence[Any],
        parameters: Sequence[torch.nn.Parameter],
        ids: torch.Tensor,
    ) -> None:
        """RuntimeError where this cannot be captured, or memory does not suffice."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        self.loss_of, self.models, self.parameters = loss_of, models, parameters
        self.ids, self.weight = ids.clone(), torch.ones((), device=ids.device)
        self.gradients = [torch.zeros_like(parameter) for parameter in parameters]
        self._hand_out()
        try:
            with attending(WHOLE, sdpa_attention_forward, _mask_of_windows, *models):
                self.graph = Captured(self._work, ids.device, self._work)
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

    def _hand_out(self) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def _work(self) -> torch.Tensor:
        loss = self.loss_of(self.ids)
        loss.backward(self.weight)
        return loss.detach()


def _mask_of_windows(**asked: Any) -> torch.Tensor | None:
    """None, for causal attention, where a layer attends to all of a window. While a stream captures, transformers would
    make a mask in case windows are packed, with which torch takes slower kernels that need more memory."""
    from transformers.masking_utils import sdpa_mask

    local = asked.get("local_size")
    whole = local is None or asked["kv_length"] < local
    return None if whole else sdpa_mask(**asked)
