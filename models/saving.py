"""Save a pruned model as a folder that ``from_pretrained(..., trust_remote_code=True)`` loads."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from core.families import Family
from models.shipped import render
from models.tensors import MAX_SHARD_SIZE, specs_of, write_tensors


def save_checkpoint(
    model: Any,
    family: Family,
    tokenizer: Any,
    folder: Path,
    dtype: torch.dtype,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> Path:
    """Write safetensors in ``dtype``, config, generation config, tokenizer and the two shipped Python files.

    Everything is written beside ``folder`` and renamed into place, replacing an earlier one only when complete.
    """
    return save_tensors(model.state_dict(), model, family, tokenizer, folder, dtype, max_shard_size)


def save_tensors(
    tensors: Mapping[str, torch.Tensor],
    model: Any,
    family: Family,
    tokenizer: Any,
    folder: Path,
    dtype: torch.dtype,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> Path:
    """The same where ``model`` is empty (on the meta device) and ``tensors`` gives its weights one at a time.

    Each is asked for once, converted and written before the next, so no second copy of the weights is ever held.
    """
    with in_place_of(folder) as temporary:
        metadata = {"total_parameters": model.num_parameters()}
        write_tensors(temporary, specs_of(model, dtype), tensors, max_shard_size, metadata)
        model.config.dtype = str(dtype).removeprefix("torch.")
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(temporary)
        model.generation_config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for name, text in render(family).items():
            (temporary / name).write_text(text, encoding="utf-8")
        _complete_config(temporary / "config.json", model)
    return folder


@contextmanager
def in_place_of(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder``, which takes its place when the block ends well and vanishes when it does not.

    An earlier one is moved aside first and removed last, so that it is only ever missing between two renames.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    earlier = temporary.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        _open_to_readers(temporary)
        if folder.exists():
            folder.rename(earlier)
        temporary.rename(folder)
        shutil.rmtree(earlier, ignore_errors=True)
    except BaseException:
        if earlier.exists() and not folder.exists():
            earlier.rename(folder)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open_to_readers(folder: Path) -> None:
    """mkdtemp and safetensors leave modes that only the owner can read; a result gets what the umask grants."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)


def _complete_config(path: Path, model: Any) -> None:
    """Add what other readers look for: every layer's widths, and the rope settings under their older names."""
    config = json.loads(path.read_text(encoding="utf-8"))
    layers = range(model.config.num_hidden_layers)
    config["per_layer_config"] = {str(layer): model.config.layer_widths(layer) for layer in layers}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        config |= older_rope_keys(rope)
    path.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n", encoding="utf-8")


def older_rope_keys(rope: dict[str, Any]) -> dict[str, Any]:
    """rope_theta, rope_scaling (and gemma3's rope_local_base_freq): releases before 5.0 ignore rope_parameters."""
    if "rope_theta" in rope:
        scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
        keys = {"rope_theta": rope["rope_theta"]}
        if "partial_rotary_factor" in rope:
            keys["partial_rotary_factor"] = rope["partial_rotary_factor"]
        return keys | ({"rope_scaling": scaling} if scaling.get("rope_type", "default") != "default" else {})
    keys = {}
    if "full_attention" in rope:
        keys |= older_rope_keys(rope["full_attention"])
    if "sliding_attention" in rope:
        keys["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    return keys
