"""Checkpoint tensors one at a time: read from a folder's safetensors files, written into shards, never all at once.

A safetensors file is the length of its header (8 bytes, little-endian), the header (JSON: name -> dtype, shape and
data_offsets, padded with spaces to a multiple of 8), then the tensors' bytes, widest dtype first and by name, which
keeps every tensor aligned. All shapes are known before the first tensor is, so the header goes first and then tensor
after tensor; the bytes equal those of ``safetensors.torch.save_file``.

Files are read and written by offset, not memory-mapped: mapped pages count as resident until the kernel takes them
back, and what a run needs could not be told from what it has touched.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import split_state_dict_into_shards_factory

from core.errors import ModelError, OutputError, reason_of
from core.progress import tqdm
from models.rounding import check_tensor_range

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_SIZE = "5GB"
MANY = 3  # names that a message lists
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """What a checkpoint's header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file; its bytes begin at ``start``."""

    path: Path
    spec: TensorSpec
    start: int

    def read(self) -> torch.Tensor:
        """A tensor of its own on the CPU. ModelError when the file has become shorter than its header says."""
        try:
            data = np.fromfile(self.path, dtype=np.uint8, count=self.spec.num_bytes, offset=self.start)
        except OSError as error:
            raise ModelError(f"{self.path} cannot be read any more ({reason_of(error)})") from error
        if len(data) != self.spec.num_bytes:
            raise ModelError(f"{self.path} ends before its tensors do; download it again")
        return torch.from_numpy(data).view(self.spec.dtype).reshape(self.spec.shape)


class StoredTensors(Mapping[str, torch.Tensor]):
    """A checkpoint as a mapping that reads a tensor each time it is asked for one, and keeps none.

    dtype: weights are rounded to it, as loading a model in that dtype would; None leaves them as stored.
    """

    def __init__(self, stored: dict[str, StoredTensor], dtype: torch.dtype | None = None) -> None:
        self.stored = stored
        self.dtype = dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self.stored[name].read()
        return tensor if self.dtype is None else tensor.to(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def open_tensors(folder: Path, model: Any, dtype: torch.dtype | None = None) -> StoredTensors:
    """The tensors of a checkpoint folder under the names of ``model`` (empty, on the meta device, will do).

    Headers only are read here. A tensor may be stored under another name that is tied to it, or without the prefix of
    the base model. Raises ModelError, one line, for a shard that is missing or truncated, tensors that are missing or
    of a shape other than the model's, and tied weights that are stored twice and differ.
    """
    found = {name: tensor for path in weight_files(folder) for name, tensor in _stored_in(path).items()}
    stored, missing = {}, []
    for names in tied_names(model):
        unprefixed = [name.removeprefix(f"{model.base_model_prefix}.") for name in names]
        here = [found[name] for name in names if name in found] or [found[n] for n in unprefixed if n in found]
        if not here:
            missing.append(names[0])
            continue
        needed = tuple(model.get_parameter_or_buffer(names[0]).shape)
        for tensor in here:
            if tensor.spec.shape != needed:
                shapes = f"{names[0]} has shape {tensor.spec.shape}, its config.json needs {needed}"
                raise ModelError(f"{folder}: {shapes}; is it complete?")
        _refuse_split_ties(folder, names, here)
        stored[names[0]] = here[0]
    if missing:
        names_and_more = ", ".join(missing[:MANY]) + (f" and {len(missing) - MANY} more" if len(missing) > MANY else "")
        raise ModelError(f"{folder}: missing tensors in the checkpoint ({names_and_more}); is it complete?")
    return StoredTensors(stored, dtype)


def check_ties(folder: Path, model: Any) -> None:
    """Tied weights that a folder stores twice must be equal; ModelError where they differ. Reads those tensors only."""
    found = {name: tensor for path in weight_files(folder) for name, tensor in _stored_in(path).items()}
    for names in tied_names(model):
        _refuse_split_ties(folder, names, [found[name] for name in names if name in found])


def _refuse_split_ties(folder: Path, names: tuple[str, ...], here: list[StoredTensor]) -> None:
    if len(here) > 1 and not torch.equal(here[0].read(), here[1].read()):
        both = " and ".join(names[:2])
        raise ModelError(f"{folder}: config.json ties {both}, which differ; set tie_word_embeddings to false in it")


def tied_names(model: Any) -> list[tuple[str, ...]]:
    """The names in a model's state dict, in its order; those of one tied tensor together, the one stored first."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return [tuple(group) for group in names.values()]


def specs_of(model: Any, dtype: torch.dtype) -> dict[str, TensorSpec]:
    """What a checkpoint of ``model`` holds, in the order of its state dict: parameters in ``dtype``, buffers as are."""
    specs = {}
    for name, *_ in tied_names(model):
        tensor = model.get_parameter_or_buffer(name)
        kept = dtype if isinstance(tensor, torch.nn.Parameter) else tensor.dtype
        specs[name] = TensorSpec(kept, tuple(tensor.shape))
    return specs


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, found as ``from_pretrained`` finds them: the single one first."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder} has neither {SINGLE} nor {INDEX}; give a complete checkpoint")
    return indexed_files(folder)


def indexed_files(folder: Path) -> list[Path]:
    """The shards that the index of a folder names; ModelError when it cannot be read."""
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return [folder / str(name) for name in sorted(set(weight_map.values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{folder / INDEX} is not an index of safetensors files ({reason_of(error)}); download it again"
        ) from error


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file (name -> dtype, shape, data_offsets) and where the tensors' bytes begin.

    Raises ModelError for a file that is missing, no safetensors file, or not as long as its header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes)) if 0 < header_bytes <= size else None
        assert isinstance(header, dict)
        header.pop("__metadata__", None)
        needed = 8 + header_bytes + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except FileNotFoundError as error:
        what = "a link to a missing file" if path.is_symlink() else "missing"
        raise ModelError(f"{path.parent}: the weight file {path.name} is {what}; download it again") from error
    except OSError as error:
        raise ModelError(f"{path.parent}: the weight file cannot be read ({reason_of(error)})") from error
    except (ValueError, AssertionError, LookupError, TypeError) as error:
        raise ModelError(
            f"{path} is not a safetensors file or is truncated ({size} bytes); download it again"
        ) from error
    if size != needed:
        raise ModelError(f"{path} is truncated: {size} bytes where its header needs {needed}; download it again")
    return header, 8 + header_bytes


def write_tensors(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    tensors: Mapping[str, torch.Tensor],
    max_shard_size: str = MAX_SHARD_SIZE,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write ``tensors`` into ``folder`` as one safetensors file, or as shards with an index, one tensor at a time.

    Each of ``specs`` is asked for once and converted to its dtype. Shards are cut as ``save_pretrained`` cuts them: in
    the order of ``specs``, none above max_shard_size (``200MB``, decimal) unless one tensor is. metadata: further
    entries of the index. Raises OutputError when the disk has no room for all of it.
    """
    split = split_state_dict_into_shards_factory(
        dict(specs),
        get_storage_size=lambda spec: spec.num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    needed, free = sum(spec.num_bytes for spec in specs.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder.parent}: the model needs {needed:,} more bytes and the disk has {free:,} left; free some, or "
            "give another --output"
        )
    with tqdm(total=len(specs), desc="save", unit="tensor", leave=False) as progress:
        for file, names in split.filename_to_tensors.items():
            _write_file(folder / file, {name: specs[name] for name in names}, tensors, progress)
    if split.is_sharded:
        index = {"metadata": {**(metadata or {}), **split.metadata}, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_file(path: Path, specs: dict[str, TensorSpec], tensors: Mapping[str, torch.Tensor], progress: Any) -> None:
    ordered = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        spec = specs[name]
        start, end = end, end + spec.num_bytes
        header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            file.write(_bytes_of(tensors[name], specs[name], name))
            progress.update()


def _bytes_of(tensor: torch.Tensor, spec: TensorSpec, name: str) -> memoryview:
    if tuple(tensor.shape) != spec.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the header says {spec.shape}")
    check_tensor_range(name, tensor, spec.dtype)
    converted = tensor.detach().to(device="cpu", dtype=spec.dtype).contiguous()
    return converted.reshape(-1).view(torch.uint8).numpy().data


def _stored_in(path: Path) -> dict[str, StoredTensor]:
    """Everything in one file, by the name in the file."""
    header, data = read_header(path)
    try:
        return {name: _stored_tensor(path, entry, data) for name, entry in header.items()}
    except (LookupError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: its header describes an impossible tensor ({error}); download it again") from error


def _stored_tensor(path: Path, entry: dict[str, Any], data: int) -> StoredTensor:
    spec = TensorSpec(DTYPES[entry["dtype"]], tuple(entry["shape"]))
    start, end = entry["data_offsets"]
    if start < 0 or end - start != spec.num_bytes:
        raise ValueError(f"{start} to {end} is not the size of {entry['dtype']} {list(spec.shape)}")
    return StoredTensor(path, spec, data + start)
