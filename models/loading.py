"""Load a causal LM safely: everything that needs no weights is checked first, weights come from safetensors only."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from core.errors import ModelError, UsageError, reason_of
from core.families import Family
from core.groups import Architecture
from core.ranks import ALONE, Ranks
from models.architecture import architecture_of
from models.attention import runnable_attention
from models.checkpoint_files import check_files, download_weights, find_folder, read_config
from models.family_table import family_of
from models.narrow import is_pruned_type
from models.own_code import notes_on_own_code
from models.places import check_places, notes_on_class, stored_dtype, stored_headers
from models.shipped import shipped_classes
from models.stored import check_widths
from models.tensors import StoredTensors, check_ties, open_tensors
from models.tokenizers import check_token_ids, load_tokenizer

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class ModelSource:
    """A model that has passed every check that needs no weights.

    path: folder or hub id as given. folder: where its files lie (for a hub id, in the hub's cache). name: short name
    for output folders. stored_dtype: of most weights, as the files say. architecture: counted from an empty model.
    context: max_position_embeddings, tokens. vocab_rows: of the embedding. notes: sentences for the user about what is
    taken otherwise than written.
    """

    path: str
    folder: Path
    name: str
    family: Family
    architecture: Architecture
    stored_dtype: torch.dtype
    context: int
    vocab_rows: int
    trust_remote_code: bool
    notes: tuple[str, ...] = ()

    @cached_property
    def config(self) -> Any:
        """Read when first asked for, unless it was handed over: a class of transformers takes long to import."""
        return _load_config(self.path, self.folder, read_config(self.path, self.folder))[0]

    @cached_property
    def tokenizer(self) -> Any:
        """The same."""
        return load_tokenizer(self.path, self.config, self.trust_remote_code)

    def holding(self, config: Any, tokenizer: Any) -> "ModelSource":
        """Itself, with both in place."""
        vars(self).update(config=config, tokenizer=tokenizer)
        return self

    @property
    def causal_lm_class(self) -> Any:
        """Our own class for a checkpoint this tool wrote (its shipped Python is not executed), else the Auto class."""
        if is_pruned_type(self.config.model_type):
            return shipped_classes(self.family).causal_lm
        return transformers.AutoModelForCausalLM


def check_model(base_model: str, trust_remote_code: bool = False) -> ModelSource:
    """Resolve a hub id, a folder or ``demo``; check family, files and tokenizer; count its parameters.

    The weights of a hub id are downloaded last, and their headers read: a hub id passes the same checks as a folder.
    trust_remote_code: for the tokenizer; code that computes the model is never run (``models.own_code``).
    Raises ModelError (one line) for a missing or empty folder, an unsupported family, pickle-only or truncated
    weights, tensors without a place, an adapter, a missing tokenizer, or a hub id that cannot be reached.
    """
    path, folder = find_folder(base_model)
    raw = read_config(base_model, folder)
    family = family_of(raw["model_type"])
    notes = notes_on_own_code(base_model, raw, trust_remote_code)
    pruned = is_pruned_type(raw["model_type"])
    if pruned or Path(path).is_dir():
        folder = download_weights(path, folder)
        check_files(base_model, folder)
    if pruned:
        check_widths(base_model, raw, stored_headers(folder))
    config, more = _load_config(base_model, folder, raw)
    notes += more
    tokenizer = load_tokenizer(path, config, trust_remote_code)
    check_token_ids(base_model, tokenizer, config.vocab_size)
    folder = download_weights(path, folder)
    notes += check_files(base_model, folder)
    headers = stored_headers(folder)
    empty = _empty_model(config, family)
    check_places(base_model, headers, empty, family)
    notes += notes_on_class(base_model, empty)
    check_ties(folder, empty)
    dtype, more = stored_dtype(base_model, headers, empty, family)
    source = ModelSource(
        path=path,
        folder=folder,
        name=Path(base_model).name or base_model,
        family=family,
        architecture=architecture_of(empty, family),
        stored_dtype=dtype,
        context=int(getattr(config, "max_position_embeddings", 2048)),
        vocab_rows=config.get_text_config().vocab_size,
        trust_remote_code=trust_remote_code,
        notes=notes + more,
    )
    return source.holding(config, tokenizer)


def load_model(source: ModelSource, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the weights (safetensors only) onto one device, in eval mode with frozen parameters.

    Raises ModelError when the files are missing, truncated or do not fit the configuration; a weight is never
    silently initialised at random.
    """
    placement: dict[str, Any] = {"device_map": {"": device}} if device.type == "cuda" else {}
    try:
        model, report = source.causal_lm_class.from_pretrained(
            source.folder,
            config=source.config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **placement,
        )
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{source.path} does not fit on {device}; try --device cpu or --dtype bfloat16") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot load the weights of {source.path}: {reason_of(error)}") from error
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
    empty = _empty_model(source.config, source.family).eval()
    empty.generation_config = generation_config_of(source)
    return empty, open_tensors(source.folder, empty, dtype)


def hollow_model(config: Any, family: Family, dtype: torch.dtype) -> Any:
    """A model for the streamed engine to run: parameters in ``dtype`` on the meta device, buffers as they should be."""
    from accelerate import init_empty_weights

    config = copy.deepcopy(config)
    with init_empty_weights():
        if is_pruned_type(config.model_type):
            model = shipped_classes(family).causal_lm._from_config(config, dtype=dtype)
        else:
            model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=dtype)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def generation_config_of(source: ModelSource) -> "transformers.GenerationConfig":
    """Its own, or the one that loading makes from the configuration."""
    try:
        return transformers.GenerationConfig.from_pretrained(source.folder)
    except OSError:  # there is none
        return transformers.GenerationConfig.from_pretrained(
            source.folder, config_file_name="config.json", _from_model_config=True
        )


def choose_device(name: str, here: Ranks = ALONE) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as a torch device; a GPU always comes with its number, which torch
    wants wherever it is asked about memory.

    One process takes the current GPU where none is named, of several on one machine each takes its own. UsageError for
    a device that this machine lacks, for one GPU that is named for all, and where there are too few.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name} is not one of auto, cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name} is not one of auto, cpu, cuda, cuda:N")
    if device.type == "cpu":
        return device
    named, count = ":" in name, torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise UsageError(f"--device {name}: this machine has {count} CUDA devices; use --device cpu")
    if named and here.local_count > 1:
        raise UsageError(f"--device {device} names one GPU for {here.local_count} processes; use cuda, or leave it out")
    if here.local >= count:
        raise UsageError(
            f"{here.local_count} processes were started on a machine with {count} CUDA devices: "
            f"use --nproc_per_node {count}, or --device cpu"
        )
    if named:
        return device
    return torch.device("cuda", torch.cuda.current_device() if here.local_count == 1 else here.local)


def choose_dtype(name: str, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """``auto`` computes in float32 on a CPU (exact for any stored dtype) and in the checkpoint's dtype on a GPU."""
    if name != "auto":
        return DTYPES[name]
    return torch.float32 if device.type == "cpu" else stored


def _load_config(name: str, folder: Path, raw: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The configuration, with an attention that runs here, and notes about that.

    It is of the family's own class, or ours: Python that the checkpoint brings has no say.
    """
    try:
        if is_pruned_type(raw["model_type"]):
            config = shipped_classes(family_of(raw["model_type"])).config.from_pretrained(folder)
        else:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # values that its checks refuse; each release raises types of its own
        raise ModelError(f"cannot read the configuration of {name}: {reason_of(error)}") from error
    return config, runnable_attention(name, config)


def _empty_model(config: Any, family: Family) -> Any:
    try:
        with torch.device("meta"):
            if is_pruned_type(config.model_type):
                return shipped_classes(family).causal_lm(config)
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # values that no layer can be built from: a width of 0, a text for a number
        found = _where(config.to_dict(), error.args[0]) if isinstance(error, KeyError) else ""
        raise ModelError(f"config.json describes no model that can be built: {found or reason_of(error)}") from error


def _where(values: dict[str, Any], unknown: Any) -> str:
    """``rope_type is 'foo', ...`` where that stands in a configuration; a table that lacks it says only 'foo'."""
    for key, value in values.items():
        inner = _where(value, unknown) if isinstance(value, dict) else ""
        if inner or (isinstance(value, str) and value == unknown):
            return inner or f"{key} is '{value}', which this release of transformers does not know"
    return ""


def check_context(option: str, seq_len: int, context: int) -> None:
    """Raise UsageError when windows would be longer than the model was made for."""
    if seq_len > context:
        raise UsageError(f"{option} {seq_len} is beyond the model's context of {context} tokens; use {context} or less")
