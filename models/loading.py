"""Load a causal LM safely: everything that needs no weights is checked first, weights come from safetensors only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from core.errors import ModelError, UsageError
from core.families import Family
from core.groups import Architecture
from core.hub import offline_if_unreachable
from models.architecture import architecture_of
from models.families import family_of
from models.narrow import is_pruned_type
from models.shipped import shipped_classes
from models.stored import check_tensors, check_widths
from models.tensors import INDEX, SINGLE, StoredTensors, check_ties, indexed_files, open_tensors, read_header

DEMO = Path(__file__).with_name("demo")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class ModelSource:
    """A model that has passed every check that needs no weights.

    path: folder or hub id for ``from_pretrained``. name: short name for output folders. stored_dtype: of the
    checkpoint's weights. architecture: counted from an empty model. context: max_position_embeddings, tokens.
    """

    path: str
    name: str
    config: Any
    family: Family
    tokenizer: Any
    architecture: Architecture
    stored_dtype: torch.dtype
    context: int
    trust_remote_code: bool

    @property
    def causal_lm_class(self) -> Any:
        """Our own class for a checkpoint this tool wrote (its shipped Python is not executed), else the Auto class."""
        if is_pruned_type(self.config.model_type):
            return shipped_classes(self.family).causal_lm
        return AutoModelForCausalLM


def check_model(base_model: str, trust_remote_code: bool = False) -> ModelSource:
    """Resolve a hub id, a folder or ``demo``; check family, files and tokenizer; count its parameters.

    Raises ModelError (one line) for a missing or empty folder, an unsupported family, pickle-only or truncated
    weights, a missing tokenizer, or a hub id that cannot be reached.
    """
    path = str(DEMO) if base_model == "demo" else base_model
    folder = Path(path).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        path = str(folder)
    elif folder.exists():
        raise ModelError(f"--base_model {base_model} is a file; give the folder that holds its config.json")
    elif _looks_like_path(base_model):
        raise ModelError(f"--base_model {base_model}: no such folder; give an existing folder, a hub id, or demo")
    config = _load_config(path, trust_remote_code)
    family = family_of(config.model_type)
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{base_model} is quantised; prune the unquantised checkpoint, then quantise the result")
    tokenizer = _load_tokenizer(path, config, trust_remote_code)
    empty = _empty_model(config, family, trust_remote_code)
    if folder.is_dir():
        check_tensors(folder, empty, strict=is_pruned_type(config.model_type))
        check_ties(folder, empty)
    return ModelSource(
        path=path,
        name=Path(base_model).name or base_model,
        config=config,
        family=family,
        tokenizer=tokenizer,
        architecture=architecture_of(empty, family),
        stored_dtype=getattr(config, "dtype", None) or torch.float32,
        context=int(getattr(config, "max_position_embeddings", 2048)),
        trust_remote_code=trust_remote_code,
    )


def load_model(source: ModelSource, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the weights (safetensors only) onto one device, in eval mode with frozen parameters.

    Raises ModelError when the files are missing, truncated or do not fit the configuration; a weight is never
    silently initialised at random.
    """
    placement: dict[str, Any] = {"device_map": {"": device}} if device.type == "cuda" else {}
    try:
        model, report = source.causal_lm_class.from_pretrained(
            source.path,
            config=source.config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
            **placement,
        )
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{source.path} does not fit on {device}; try --device cpu or --dtype bfloat16") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot load the weights of {source.path}: {_first_line(error)}") from error
    for problem in ("missing_keys", "mismatched_keys"):
        if report.get(problem):
            names = ", ".join(sorted(str(key) for key in report[problem])[:3])
            raise ModelError(f"{source.path}: {problem.replace('_', ' ')} in the checkpoint ({names}); is it complete?")
    return model.to(device).eval().requires_grad_(False)


def open_weights(source: ModelSource, dtype: torch.dtype | None) -> tuple[Any, StoredTensors]:
    """For models larger than memory: an empty one (meta device, generation configuration included), and its tensors.

    The tensors are read one at a time and rounded to ``dtype`` (None: left as stored).
    Raises ModelError under the same conditions as ``load_model``.
    """
    empty = _empty_model(source.config, source.family, source.trust_remote_code).eval()
    with offline_if_unreachable():
        try:
            empty.generation_config = GenerationConfig.from_pretrained(source.path)
        except OSError:  # there is none: the one that loading makes from the configuration
            empty.generation_config = GenerationConfig.from_pretrained(
                source.path, config_file_name="config.json", _from_model_config=True
            )
    return empty, open_tensors(local_folder(source.path), empty, dtype)


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as a torch device. UsageError for one this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name} is not one of auto, cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name} is not one of auto, cpu, cuda, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UsageError(f"--device {name}: this machine has {count} CUDA devices; use --device cpu")
    return device


def choose_dtype(name: str, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """``auto`` computes in float32 on a CPU (exact for any stored dtype) and in the checkpoint's dtype on a GPU."""
    if name != "auto":
        return DTYPES[name]
    return torch.float32 if device.type == "cpu" else stored


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name == ""


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        found = "is empty" if not any(folder.iterdir()) else "has no config.json"
        raise ModelError(f"--base_model {folder} {found}; give a folder written by save_pretrained")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'config.json'} is not a model configuration ({_first_line(error)})") from error
    family_of(model_type)
    shards = indexed_files(folder) if (folder / INDEX).is_file() else sorted(folder.glob("*.safetensors"))
    if not shards:
        pickled = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
        if pickled:
            raise ModelError(
                f"{folder} has only pickled weights ({pickled[0]}), which can run code when loaded; convert them to "
                "safetensors first (load where you trust them, then save_pretrained)"
            )
        raise ModelError(f"{folder} has no *.safetensors weights; give a complete checkpoint")
    for shard in shards:
        read_header(shard)


def _empty_model(config: Any, family: Family, trust_remote_code: bool) -> Any:
    try:
        with torch.device("meta"):
            if is_pruned_type(config.model_type):
                return shipped_classes(family).causal_lm(config)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # values that no layer can be built from: a width of 0, a text for a number
        raise ModelError(f"config.json describes no model that can be built: {_first_line(error)}") from error


def local_folder(path: str) -> Path:
    """Where the weights of a folder or hub id lie; those of a hub id are downloaded, safetensors only."""
    if Path(path).is_dir():
        return Path(path)
    try:
        with offline_if_unreachable():
            return Path(snapshot_download(path, allow_patterns=[SINGLE, "model-*.safetensors", INDEX]))
    except Exception as error:  # as in _load_config
        raise ModelError(f"cannot download the weights of {path}: {_first_line(error)}") from error


def _load_config(path: str, trust_remote_code: bool) -> Any:
    model_type = _stored_model_type(path)
    try:
        if model_type is not None and is_pruned_type(model_type):
            check_widths(Path(path), family_of(model_type))
            return shipped_classes(family_of(model_type)).config.from_pretrained(path)
        with offline_if_unreachable():
            return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # the hub client raises a dozen types; all of them mean the same here
        if isinstance(error, ModelError):
            raise
        hint = "" if Path(path).is_dir() else "; without network give a local folder, or --base_model demo"
        raise ModelError(f"cannot read the configuration of {path}: {_first_line(error)}{hint}") from error


def _stored_model_type(path: str) -> str | None:
    config = Path(path) / "config.json"
    return json.loads(config.read_text(encoding="utf-8"))["model_type"] if config.is_file() else None


def _load_tokenizer(path: str, config: Any, trust_remote_code: bool) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, config=config, trust_remote_code=trust_remote_code)
        usable = len(tokenizer("a b")["input_ids"]) > 0
    except Exception as error:  # as above
        raise ModelError(
            f"cannot load a tokenizer from {path}: {_first_line(error)}; copy its tokenizer files into the folder"
        ) from error
    if not usable:
        raise ModelError(f"the tokenizer of {path} turns text into nothing; copy its tokenizer files into the folder")
    return tokenizer


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def check_context(option: str, seq_len: int, context: int) -> None:
    """Raise UsageError when windows would be longer than the model was made for."""
    if seq_len > context:
        raise UsageError(f"{option} {seq_len} is beyond the model's context of {context} tokens; use {context} or less")
