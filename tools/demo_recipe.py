"""Shapes of the small trained models and their tokenizer; weights come from ``tools/train_demo.py``.

``demo`` is embedded in the program, the others serve the benchmarks (benchmarks/models).
"""

from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import AutoConfig, PreTrainedTokenizerFast

BOS, EOS = "<|begin|>", "<|end|>"
VOCABULARY = 4096
CONTEXT = 512  # max_position_embeddings: no window beyond it is ever trained on


def train_tokenizer(documents: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: no unknown token; BOS is put before every text by the post-processor."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


SHAPES: dict[str, dict[str, Any]] = {
    # 12 layers, H = 6 query heads on K = 3 KV heads of D = 32, F = 512 channels
    "demo": {
        "model_type": "llama",
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 32,
        "intermediate_size": 512,
    },
    # biases on q, k and v; 8 layers, H = 8 on K = 4 of D = 20, F = 384
    "qwen2": {
        "model_type": "qwen2",
        "hidden_size": 160,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 384,
    },
    # deep and narrow, four norms a layer; 20 layers, H = 4 on K = 2 of D = 24, F = 288, every layer sees all tokens
    "gemma3": {
        "model_type": "gemma3_text",
        "hidden_size": 96,
        "num_hidden_layers": 20,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "intermediate_size": 288,
        "query_pre_attn_scalar": 24,
        "layer_types": ["full_attention"] * 20,
    },
}


def model_config(shape: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The configuration of one of ``SHAPES``, embeddings tied."""
    return AutoConfig.for_model(
        **SHAPES[shape],
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
