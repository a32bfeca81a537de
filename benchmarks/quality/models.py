"""The models of the benchmarks by name: those of this repository, and a checkpoint that the world knows."""

from pathlib import Path

from huggingface_hub import snapshot_download

from benchmarks.pretrained import default_folder, pretrained
from models.loading import check_model

PRETRAINED = "smollm2"
CHECKPOINT = ["*.json", "*.safetensors", "*.model", "*.txt"]
ROOT = Path(__file__).resolve().parent.parent.parent


def known_models() -> dict[str, Path]:
    """Name -> folder. That of PRETRAINED need not be there yet."""
    trained = sorted(path.parent for path in (ROOT / "benchmarks" / "models").glob("*/config.json"))
    return (
        {"demo": ROOT / "models" / "demo"}
        | {folder.name: folder for folder in trained}
        | {PRETRAINED: default_folder()}
    )


def folder_of(model: str) -> Path:
    """Of a known model by its name, fetched where that is due, else of a checkpoint: a folder, or a hub id."""
    known = known_models().get(model)
    if known is not None:
        return pretrained(known) if model == PRETRAINED else known
    check_model(model)  # says in a line what is wrong with it
    return Path(model) if Path(model).is_dir() else Path(snapshot_download(model, allow_patterns=CHECKPOINT))
