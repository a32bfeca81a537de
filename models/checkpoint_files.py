"""Where a checkpoint's files lie and what lies there: read before any configuration is believed or weight is loaded.

A hub id is looked up first in the hub's own cache; from there on it is a folder like any other, and every check below
asks the folder.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from core.errors import ModelError, reason_of
from core.hub import offline_if_unreachable
from models.family_table import FAMILIES, family_of
from models.tensors import INDEX, SINGLE, indexed_files, read_header

DEMO = Path(__file__).with_name("demo")
ADAPTER_CONFIG = "adapter_config.json"
SENTENCE_MODULES = "modules.json"  # sentence-transformers: what stands behind the language model, pooling first
DESCRIPTIONS = ("config.json", "generation_config.json", INDEX, ADAPTER_CONFIG, SENTENCE_MODULES)
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def find_folder(base_model: str) -> tuple[str, Path]:
    """What ``from_pretrained`` takes (a folder or hub id), and the folder that holds its config.json.

    Of a hub id only the files that describe the model are downloaded here; ``download_weights`` gets the rest.
    Raises ModelError (one line) for a folder that does not exist, a file, or a hub id that cannot be reached.
    """
    path = str(DEMO) if base_model == "demo" else base_model
    folder = Path(path).expanduser()
    try:
        if folder.is_dir():
            return str(folder), folder
        if folder.exists():
            raise ModelError(f"--base_model {base_model} is a file; give the folder that holds its config.json")
    except OSError as error:
        raise ModelError(f"--base_model {base_model} cannot be read ({reason_of(error)})") from error
    if _looks_like_path(base_model):
        raise ModelError(f"--base_model {base_model}: no such folder; give an existing folder, a hub id, or demo")
    try:
        return path, _snapshot(path, DESCRIPTIONS)
    except Exception as error:  # the hub client raises a dozen types; all of them mean the same here
        raise ModelError(
            f"cannot read the configuration of {path}: {reason_of(error)}; without network give a local folder, or "
            "--base_model demo"
        ) from error


def download_weights(path: str, folder: Path) -> Path:
    """The folder with the weights, safetensors only; ``path`` is downloaded where it is a hub id. ModelError."""
    if Path(path).is_dir():
        return folder
    shards = [shard.name for shard in indexed_files(folder)] if (folder / INDEX).is_file() else []
    try:
        return _snapshot(path, (*DESCRIPTIONS, SINGLE, *shards))
    except Exception as error:  # as above
        raise ModelError(f"cannot download the weights of {path}: {reason_of(error)}") from error


def _snapshot(path: str, files: tuple[str, ...]) -> Path:
    with offline_if_unreachable():
        return Path(snapshot_download(path, allow_patterns=list(files)))


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name == ""


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """config.json as it is written, of a supported family.

    Raises ModelError (one line) where it is missing or unreadable, for another model_type, quantised weights, and for
    files beside it that make the checkpoint more than a causal LM: an adapter, the modules of an embedding model.
    """
    _refuse_adapter(name, folder)
    file = folder / "config.json"
    try:
        if not file.exists():
            found = "has no config.json" if any(folder.iterdir()) else "is empty"
            raise ModelError(f"--base_model {name} {found}; give a folder written by save_pretrained")
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is not a model configuration ({reason_of(error)})") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(model_type, str):
        raise ModelError(f"{file} is not a model configuration (its model_type is {json.dumps(model_type)[:40]})")
    _refuse_other_family(name, config)
    if next(_named(config, ("quantization_config", "compression_config")), None):
        raise ModelError(f"{name} is quantised; prune the unquantised checkpoint, then quantise the result")
    if (folder / SENTENCE_MODULES).exists():
        raise ModelError(
            f"{name} is an embedding model of sentence-transformers ({SENTENCE_MODULES}): its modules would be lost, "
            f"and loss on text does not measure embeddings; to prune it as a causal LM, remove {SENTENCE_MODULES}"
        )
    return dict(config)


def _refuse_adapter(name: str, folder: Path) -> None:
    """Loading would attach the adapter where peft is installed and leave it out where it is not."""
    found = [folder / ADAPTER_CONFIG, *folder.glob("adapter_model*")]
    files = ", ".join(sorted(path.name for path in found if path.exists()))
    if files and (folder / "config.json").exists():
        raise ModelError(
            f"{name} holds an adapter beside its weights ({files}); merge it first (peft: merge_and_unload, then "
            "save_pretrained), or remove those files to prune the model without it"
        )
    if files:
        raise ModelError(
            f"{name} holds an adapter{_base_of(folder)} and no model ({files}); load it with peft, merge it "
            "(merge_and_unload), save the result with save_pretrained and give that"
        )


def _base_of(folder: Path) -> str:
    try:
        return f" for {json.loads((folder / ADAPTER_CONFIG).read_text('utf-8'))['base_model_name_or_path']}"
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _refuse_other_family(name: str, config: dict[str, Any]) -> None:
    if config["model_type"] in FAMILIES or not isinstance(config.get("text_config"), dict):
        family_of(config["model_type"])
        return
    inner = config["text_config"].get("model_type")
    way = f"; save its language model ({inner}) alone and prune that" if inner in FAMILIES else ""
    supported = ", ".join(sorted(FAMILIES))
    raise ModelError(
        f"{name} is a model for more than text (model_type '{config['model_type']}', with a text_config){way}; "
        f"supported are: {supported}"
    )


def _named(value: Any, names: tuple[str, ...]) -> Iterator[Any]:
    """Whatever stands under one of the names, at any depth, and is not empty."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in names and inner:
                yield inner
            yield from _named(inner, names)


def check_files(name: str, folder: Path) -> tuple[str, ...]:
    """Read the header of every weight file; notes about files that are not read.

    Raises ModelError (one line) where weights are missing, pickled, or not what their headers say.
    """
    try:
        held = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ModelError(f"--base_model {name} cannot be read ({reason_of(error)})") from error
    if INDEX not in held and SINGLE not in held:
        raise ModelError(f"{name} {_instead_of_weights(held)}")
    both = SINGLE in held and INDEX in held
    shards = indexed_files(folder) if INDEX in held else [folder / SINGLE]
    for shard in dict.fromkeys([*shards, folder / SINGLE] if both else shards):
        read_header(shard)
    if both and shards != [folder / SINGLE]:
        return (f"{name} holds both {SINGLE} and {INDEX}; the first is read, as from_pretrained does",)
    return ()


def _instead_of_weights(held: list[str]) -> str:
    others = [file for file in held if file.endswith(".safetensors")]
    pickled = [file for file in held if file.endswith(PICKLED)]
    if others:
        return (
            f"has neither {SINGLE} nor {INDEX}, and from_pretrained does not read {', '.join(others[:3])}; give a "
            "checkpoint saved by save_pretrained"
        )
    if pickled:
        return (
            f"has only pickled weights ({pickled[0]}), which can run code when loaded; convert them to safetensors "
            "first (if you trust them, load and save_pretrained)"
        )
    return f"has no *.safetensors weights (neither {SINGLE} nor {INDEX}); give a complete checkpoint"
