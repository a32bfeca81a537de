"""What the calibration tests share: a tokenizer of one token a byte, and text whose words name their place."""

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS = "<s>"


def byte_tokenizer(bos: bool = True, context: int = 64) -> PreTrainedTokenizerFast:
    """One token a UTF-8 byte, so that token counts are byte counts; BOS (if any) is put before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate([BOS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS if bos else None,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def numbered_paragraphs(count: int, words: int = 12, seed: int = 0) -> list[str]:
    """Paragraphs of random words; each begins with its own number."""
    rng = random.Random(seed)
    return [f"{number}: " + " ".join(f"w{rng.randrange(10**6)}" for _ in range(words)) for number in range(count)]
