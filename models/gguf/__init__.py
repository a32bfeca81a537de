"""Export a saved checkpoint, pruned or dense, to GGUF: the file that llama.cpp and what is built on it run.

    global-pruning gguf results/demo/model --outtype f16

GGUF has one ordinary architecture whose head counts and feed-forward lengths may differ from layer to layer and that
computes what a Llama computes: ``deci``. Another, ``openelm``, has the query and key norms of a Qwen3 with tied
embeddings. What neither computes exactly is refused with the reason (models/gguf/support.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UsageError

if TYPE_CHECKING:
    from models.loading import ModelSource

OUTTYPES = ("f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class Exported:
    """A finished GGUF file. arch: ``deci`` or ``openelm``. notes: what a user should know before quantising it."""

    path: Path
    arch: str
    tensors: int
    size_bytes: int
    notes: tuple[str, ...]


def check_gguf(source: "ModelSource") -> None:
    """Raise ModelError where a checkpoint of this kind cannot become GGUF; reads no weights.

    Pruning changes nothing that is looked at here, so a run can ask before it prunes.
    UsageError where the ``gguf`` package is missing.
    """
    from models.gguf.support import arch_of
    from models.gguf.vocabulary import vocabulary_of

    _require_package()
    arch_of(source)
    vocabulary_of(source)


def export_gguf(folder: Path, outfile: Path | None = None, outtype: str = "f16") -> Exported:
    """Write ``folder`` (config, safetensors, tokenizer) as one GGUF file; the same folder gives the same bytes.

    outfile: ``<folder>/<folder name>-<outtype>.gguf`` if None. outtype: of the matrices (norms and biases stay f32;
    with q8_0, matrices whose rows are no multiple of 32 become f16).
    Tensors pass one by one, so memory holds the largest of them, not the model. The file appears when it is complete.
    Raises ModelError where the checkpoint is incomplete or GGUF cannot express it, UsageError for a missing package.
    """
    _require_package()
    from models.gguf.export import write_gguf

    return write_gguf(folder, outfile, outtype)


def _require_package() -> None:
    try:
        import gguf  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError("exporting to GGUF needs the package gguf: pip install gguf") from error
