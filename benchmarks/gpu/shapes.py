"""Random models of known shapes, built where they are computed."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.large_shape import MISTRAL_7B

TOKENIZER = Path(__file__).resolve().parents[2] / "models" / "demo"
SHAPES: dict[str, dict[str, Any]] = {
    "mistral-7b": MISTRAL_7B,
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 768,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
}


def build(name: str, layers: int | None, device: torch.device, dtype: torch.dtype) -> Any:
    """A model of SHAPES with weights drawn by its family's rule; the tokens of the embedded tokenizer are its first."""
    shape = dict(SHAPES[name])
    if layers is not None:
        shape["num_hidden_layers"] = layers
    torch.manual_seed(0)
    config = AutoConfig.for_model(**shape, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = AutoModelForCausalLM.from_config(config).eval()
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False)


def save(model: Any, folder: Path) -> Path:
    """A checkpoint that a run reads, with the embedded model's tokenizer."""
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZER, local_files_only=True).save_pretrained(folder)
    return folder
