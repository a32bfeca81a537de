"""A checked model as facts that can be kept, and back: what all the checks of ``check_model`` found."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from core.groups import Architecture, Block, LayerShape
from models.family_table import FAMILIES
from models.loading import ModelSource


def source_facts(source: ModelSource) -> dict[str, Any]:
    """Whatever JSON can hold of it: all but the configuration and the tokenizer, which are read again when needed."""
    shape = source.architecture
    return {
        "path": source.path,
        "folder": str(source.folder),
        "name": source.name,
        "family": source.family.model_type,
        "architecture": {
            "model_type": shape.model_type,
            "hidden_size": shape.hidden_size,
            "total_params": shape.total_params,
            "layers": [
                {"blocks": [asdict(block) for block in layer.blocks], "norm_params": layer.norm_params}
                for layer in shape.layers
            ],
        },
        "stored_dtype": str(source.stored_dtype).removeprefix("torch."),
        "context": source.context,
        "vocab_rows": source.vocab_rows,
        "notes": list(source.notes),
    }


def source_from(facts: dict[str, Any]) -> ModelSource:
    """The source that the facts were made from; one whose own Python nobody asked for."""
    shape = facts["architecture"]
    layers = tuple(
        LayerShape.of([_block(block) for block in layer["blocks"]], layer["norm_params"]) for layer in shape["layers"]
    )
    return ModelSource(
        path=facts["path"],
        folder=Path(facts["folder"]),
        name=facts["name"],
        family=FAMILIES[facts["family"]],
        architecture=Architecture(shape["model_type"], shape["hidden_size"], shape["total_params"], layers),
        stored_dtype=getattr(torch, facts["stored_dtype"]),
        context=facts["context"],
        vocab_rows=facts["vocab_rows"],
        trust_remote_code=False,
        notes=tuple(facts["notes"]),
    )


def _block(facts: dict[str, Any]) -> Block:
    return Block(**{**facts, "rows": tuple((part, rows) for part, rows in facts["rows"])})
