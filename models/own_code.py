"""Checkpoints that bring model code of their own under the name of a supported family.

Surgery knows the layers of the family's own class. What other code computes with the same weights it cannot know, so
such code is never run; a checkpoint is treated as its model_type says, and that is told.
"""

from typing import Any

from core.errors import ModelError
from models.narrow import is_pruned_type

_NOT_OF_THE_MODEL = ("AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor")


def notes_on_own_code(name: str, config: dict[str, Any], trusted: bool) -> tuple[str, ...]:
    """A note where ``auto_map`` of a raw config.json names model code that is not run; () where there is none.

    Our own folders bring the code this program has itself. Raises ModelError where that code was asked for (trusted).
    """
    auto_map = config.get("auto_map")
    if is_pruned_type(config["model_type"]) or not isinstance(auto_map, dict):
        return ()
    brought = [str(what) for key, what in auto_map.items() if key not in _NOT_OF_THE_MODEL]
    if not brought:
        return ()
    code, family = ", ".join(brought[:2]), config["model_type"]
    if trusted:
        raise ModelError(
            f"{name} brings model code of its own ({code}), and only transformers' own {family} layers can be pruned; "
            f"leave out --trust_remote_code to prune it as an ordinary {family}, if it computes the same as one"
        )
    return (f"{name} brings model code of its own ({code}), which is not run: it is pruned as an ordinary {family}",)
