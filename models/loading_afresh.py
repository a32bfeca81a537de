"""A saved folder loaded as its users load it, with the Python it brings; or why this machine cannot."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers

from core.errors import ModelError
from core.families import Family
from core.loggers import only_errors_of
from core.memory import free_bytes
from models.faults import fault_of_the_machine, first_line
from models.stored import tensor_shapes

KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")


class NotHereError(Exception):
    """The machine's fault, in one line; it says nothing of the folder."""


def load_afresh(
    folder: Path, family: Family, device: torch.device, dtype: torch.dtype, places: dict[str, Any] | None
) -> tuple[Any, list[str]]:
    """The model, and a line for each tensor that is missing from the files or left over in them; (None, [why]) for a
    folder that does not load.

    places: accelerate's, which leaves the layers on the disk and reads them when they are called.
    Raises NotHereError where the machine has no room for a second model, or is at fault in another way.
    """
    if places is None:
        _insist_on_memory(folder, device, dtype)
    placed = {} if places is None else {"device_map": places, "offload_folder": folder.parent}
    try:
        with only_errors_of("accelerate.big_modeling"):  # it warns that layers are on the disk, where they are to be
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder, trust_remote_code=True, dtype=dtype, use_safetensors=True, output_loading_info=True, **placed
            )
        model = model.eval() if placed else model.to(device).eval()
    except Exception as error:  # the folder's own classes run here; whatever they raise is the finding
        excuse(error, folder, family)
        return None, [first_line(error)]
    return model, [f"{key}: {name}" for key in KEYS for name in sorted(map(str, report.get(key) or ()))]


def excuse(error: Exception, folder: Path, family: Family) -> None:
    """Raise NotHereError for an error that does not speak against the model."""
    fault = fault_of_the_machine(error, folder, family)
    if fault is not None:
        raise NotHereError(fault) from error


def places_on_disk(model: Any, family: Family, device: torch.device) -> dict[str, Any]:
    """Of a model of these modules: its layers stay in the checkpoint's files, what is outside them is on ``device``."""
    body, _, layers = family.layers.rpartition(".")
    outside = {f"{body}.{name}" for name, _ in model.get_submodule(body).named_children() if name != layers}
    outside |= {name for name, _ in model.named_children() if name != body}
    here = "cpu" if device.type == "cpu" else device.index or 0  # as accelerate names devices
    return dict.fromkeys(sorted(outside), here) | {family.layers: "disk"}


def _insist_on_memory(folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """A CPU process that takes more memory than there is gets killed, without an exception: ask first."""
    free = free_bytes()
    if device.type != "cpu" or free is None:
        return
    with suppress(ModelError):  # files that cannot be read are found by loading them
        needed = sum(math.prod(shape) for shape in tensor_shapes(folder).values()) * dtype.itemsize
        if needed > free:
            raise NotHereError(f"a second model needs {needed:,} bytes of memory and {free:,} are free")
