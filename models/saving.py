"""Save a pruned model as a folder that ``from_pretrained(..., trust_remote_code=True)`` loads."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from core.errors import OutputError
from core.failures import ELSEWHERE, NEXT_STEP
from core.families import Family
from core.groups import Architecture
from models.shipped import render
from models.tensors import MAX_SHARD_SIZE, specs_of, write_tensors
from models.tokenizer_files import save_tokenizer
from models.travel import carry_files

GENERATION = "generation_config.json"
SMALL_FILES_BYTES = 64 * 2**20


def save_checkpoint(
    model: Any,
    family: Family,
    tokenizer: Any,
    folder: Path,
    dtype: torch.dtype,
    max_shard_size: str = MAX_SHARD_SIZE,
    base: Path | None = None,
) -> Path:
    """Write safetensors in ``dtype``, config, generation config, tokenizer and the two shipped Python files.

    Everything is written beside ``folder`` and renamed into place, replacing an earlier one only when complete.
    base: the dense model's folder, from which ``models.travel`` takes what travels; None where there is none.
    Raises OutputError (what is needed, what is free) for a full disk, NumericalError for a weight beyond ``dtype``.
    """
    return save_tensors(model.state_dict(), model, family, tokenizer, folder, dtype, max_shard_size, base)


def save_tensors(
    tensors: Mapping[str, torch.Tensor],
    model: Any,
    family: Family,
    tokenizer: Any,
    folder: Path,
    dtype: torch.dtype,
    max_shard_size: str = MAX_SHARD_SIZE,
    base: Path | None = None,
) -> Path:
    """The same where ``model`` is empty (on the meta device) and ``tensors`` gives its weights one at a time.

    Each is asked for once, converted and written before the next, so no second copy of the weights is ever held.
    """
    with in_place_of(folder) as temporary:
        for name, text in render(family).items():
            (temporary / name).write_text(text, encoding="utf-8")
        layers = range(model.config.num_hidden_layers)
        widths = {"per_layer_config": {str(layer): model.config.layer_widths(layer) for layer in layers}}
        fill_folder(temporary, tensors, model, tokenizer, dtype, max_shard_size, base, widths)
    return folder


def fill_folder(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    model: Any,
    tokenizer: Any,
    dtype: torch.dtype,
    max_shard_size: str,
    base: Path | None,
    further: Mapping[str, Any],
) -> None:
    """All that any saved model has: what travels, config (with ``further`` keys), generation, tokenizer, weights.

    The small files come first, so that weights are last to be written and first to be missed.
    """
    specs = specs_of(model, dtype)
    with explained_by_space(folder, sum(spec.num_bytes for spec in specs.values())):
        carry_files(base, folder)
        model.config.dtype = str(dtype).removeprefix("torch.")
        model.config.architectures = [type(model).__name__]
        _write_config(folder / "config.json", model.config, further)
        if not (folder / GENERATION).exists():
            # save_pretrained refuses values that do nothing (a temperature without sampling); they hurt nobody
            model.generation_config.to_json_file(folder / GENERATION, use_diff=True, keys_to_pop=["compile_config"])
        save_tokenizer(tokenizer, model.config, folder)
        metadata = {"total_parameters": model.num_parameters()}
        write_tensors(folder, specs, tensors, max_shard_size, metadata)


def checkpoint_bytes(architecture: Architecture, dtype: torch.dtype) -> int:
    """Bytes that a saved model of these widths takes on disk, a little generously: weights in ``dtype``, and room for
    headers, tokenizer and what travels. For asking about free space before a run; of a plan not yet made, the dense
    architecture is the upper bound."""
    return architecture.total_params * dtype.itemsize + SMALL_FILES_BYTES


@contextmanager
def explained_by_space(folder: Path, weight_bytes: int) -> Iterator[None]:
    """A disk that is full, or refuses, as one line: OutputError, with the bytes needed and free where it is full."""
    try:
        yield
    except Exception as error:
        number = _disk_error(error)
        if number is None:
            raise
        if number not in (errno.ENOSPC, errno.EDQUOT):
            next_step = NEXT_STEP.get(number, ELSEWHERE)
            raise OutputError(f"{folder.parent} cannot be written ({os.strerror(number)}); {next_step}") from error
        sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        beside = sum(size for path, size in sizes.items() if path.suffix != ".safetensors")
        raise OutputError(
            f"{folder.parent}: the disk is full: the model needs {weight_bytes + beside:,} bytes, of which "
            f"{sum(sizes.values()):,} were written, and {shutil.disk_usage(folder).free:,} are free; free some, or "
            "give another --output"
        ) from error


def _disk_error(error: BaseException) -> int | None:
    """The number of an error of the operating system; libraries written in Rust have it in their text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


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
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def _write_config(path: Path, config: Any, further: Mapping[str, Any]) -> None:
    """config.json with further keys, and the names under which older releases look for dtype and rope settings.

    Not by save_pretrained, which refuses generation settings among the others; older checkpoints keep them there.
    """
    values = json.loads(config.to_json_string(use_diff=True)) | dict(further)
    values["torch_dtype"] = values["dtype"]
    if isinstance(values.get("rope_parameters"), dict):
        values |= older_rope_keys(values["rope_parameters"])
    path.write_text(json.dumps(dict(sorted(values.items())), indent=2) + "\n", encoding="utf-8")


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
