"""The same sums in the same order on a GPU, and in the precision that was asked for.

Attention's backward adds up in no fixed order by default (flash and memory-efficient kernels), and cuDNN's has no other
way. Where torch is told to refuse such algorithms, and not only to warn, it picks the first two's deterministic form
and passes cuDNN over. So cuDNN's is off altogether, else the same layer would round otherwise without gradients than
with; and it prepares itself anew for every shape, which is for every token while text is written.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def deterministic(*, strict: bool) -> Iterator[None]:
    """Inside, torch takes deterministic algorithms where there are any; others raise (``is_refusal``) where ``strict``
    and warn elsewhere. Afterwards all is as it was."""
    import torch

    was, utils = torch.get_deterministic_debug_mode(), torch.utils.deterministic
    attends = torch.backends.cuda.cudnn_sdp_enabled()
    filled = utils.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        torch.set_deterministic_debug_mode("error" if strict else "warn")
        # The other half of that switch writes every buffer before its use, which helps debugging only.
        utils.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cuda.enable_cudnn_sdp(False)
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(attends)
        torch.set_deterministic_debug_mode(was)
        utils.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@contextmanager
def only_deterministic(device: "torch.device", strict: bool = True) -> Iterator[None]:
    """Inside, algorithms that are not deterministic on a GPU raise; nothing changes on other devices, or where not
    ``strict``."""
    with deterministic(strict=True) if device.type == "cuda" and strict else nullcontext():
        yield


@contextmanager
def any_algorithm() -> Iterator[None]:
    """Inside, torch takes its fastest algorithms, for work whose result does not depend on an order: the deterministic
    form of a copy to places that are named once copies all the rest too."""
    import torch

    was = torch.get_deterministic_debug_mode()
    try:
        torch.set_deterministic_debug_mode("default")
        yield
    finally:
        torch.set_deterministic_debug_mode(was)


def is_refusal(error: RuntimeError) -> bool:
    """Whether an operation was refused for having no deterministic algorithm."""
    return "use_deterministic_algorithms" in str(error)


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside, float32 matrices are multiplied in float32 and not in TF32 or bfloat16, whatever the caller chose."""
    import torch

    matmul, onednn = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    older, newer = _older_switch(), (matmul.fp32_precision, onednn.fp32_precision)
    try:
        if older is not None:
            torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = onednn.fp32_precision = "ieee"
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        matmul.fp32_precision, onednn.fp32_precision = newer


def _older_switch() -> str | None:
    """What torch's older switch says of float32; None where the caller used the newer one, whereupon it may not be
    asked."""
    import torch

    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
