"""What a device would launch, and how often the host would wait for it: operators counted as they are dispatched."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """Counts what a device would launch, by name; views cost nothing there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not function.is_view:
            self.seen[str(function)] += 1
        return function(*args, **(kwargs or {}))

    @property
    def waits(self) -> int:
        """Values handed to Python, and tensors whose shape depends on values."""
        return self.seen["aten._local_scalar_dense.default"] + self.seen["aten.nonzero.default"]
