"""LLM-Pruner's recovery (arXiv:2305.11627): LoRA adapters trained on a text's own next token, then merged.

Rank 8 on all projections, alpha 16, dropout 0.05, AdamW at 1e-4 for LLaMA-7B, as its authors train. The rate follows
the width, 1e-4 · 4096 / hidden size, as that of this project's distillation does; steps are as large as there, since
the authors' 64 sequences a step would leave a budget like this a dozen steps.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, Trainer

from core.batching import TOKENS_A_BATCH
from core.families import Family
from pruning.recovery.distill import DistilSettings, of_large_steps
from pruning.recovery.trainer import Windows, arguments, collate, newer_names_unsaid, surroundings_kept

RANK, ALPHA, DROPOUT = 8, 16, 0.05
RATE = 1e-4 * 4096  # over the hidden size


def train_lora(model: Any, family: Family, tokens: int, text: np.ndarray, seed: int) -> None:
    """Train ``model`` in place on ``tokens`` of the text, int64 (N, T), read again where it has fewer."""
    seq_len = text.shape[1]
    a_step = max(1, min(DistilSettings(tokens).a_step // seq_len, len(text)))
    at_once = max(1, min(a_step, TOKENS_A_BATCH // seq_len)) if model.device.type == "cpu" else a_step
    passes = a_step // at_once
    steps = max(1, tokens // (passes * at_once * seq_len))
    names = sorted({member.path.rpartition(".")[2] for member in family.members})
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=names)
    with TemporaryDirectory(prefix="global-pruning-") as folder, surroundings_kept(model.device):
        torch.manual_seed(seed)  # of the adapters
        with newer_names_unsaid():
            adapted = get_peft_model(model, config)
        options = arguments(
            model.device,
            half=False,
            folder=Path(folder),
            report_to=(),
            max_steps=steps,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=passes,
            learning_rate=of_large_steps(a_step * seq_len) * RATE / model.config.hidden_size,
            lr_scheduler_type="cosine",
            warmup_steps=steps // 20,
            weight_decay=0.0,
            max_grad_norm=1.0,
            logging_strategy="no",
            seed=seed,
        )
        NextToken(model=adapted, args=options, train_dataset=Windows(text), data_collator=collate).train()
    adapted.merge_and_unload()


class NextToken(Trainer):
    """Its loss is the text's own next token, a mean over the tokens of a batch."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        ids = inputs["input_ids"]
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
