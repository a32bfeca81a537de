"""Build the model: take most of layer 0's MLP away, let three narrow layers learn its work, widen all by copies.

1. narrow  layer 0 keeps a quarter of its channels; layers 2-4 keep one KV group of three and a sixteenth of their
           channels. What stays is what ``taylor`` ranks highest.
2. train   layers 2-4 alone, on the calibration split of ``pydoc``, everything else frozen: what layer 0 no longer does
           can only be made up for there. So the model needs these layers, though they hold few parameters.
3. widen   every group is stored as often as the embedded model's shape has room for (``copies.py``): channels of
           layers 2-4 sixteen times, their KV group three times, channels of layer 0 four times. The function stays
           that of the trained model, which is checked on every logit of some windows.

The number of steps is fixed, and batches are a function of seed and step: same machine, same threads, same model.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.extreme.copies import narrowed, widened
from calibration import calibration_windows
from calibration.pydoc import pydoc_corpus
from importance.measure import measure_importance
from models.architecture import architecture_of, decoder_layers
from models.expected import relative_error
from models.loading import check_model, load_model
from models.stock import save_stock_checkpoint
from tools.train_demo import Batches, Training, token_stream

LAYERS = (2, 3, 4)
WIDTHS = {0: (3, 128)} | dict.fromkeys(LAYERS, (1, 32))  # layer -> KV groups and channels that stay, of 3 and 512
STEPS = 150
BATCH, SEQ_LEN = 8, 256
RANKING_WINDOWS, PROOF_WINDOWS = 16, 4
TOLERANCE = 1e-5  # relative error of the logits, float32
SAVE_EVERY = 20  # steps


def build(output: Path, steps: int = STEPS, seed: int = 0) -> None:
    """Train, widen, prove, save into ``output``; an interrupted training goes on where it was last kept."""
    source = check_model("demo")
    model = load_model(source, torch.device("cpu"), torch.float32)
    windows = calibration_windows("pydoc", source.tokenizer, RANKING_WINDOWS, SEQ_LEN, seed)
    importance = measure_importance(model, source.family, source.architecture, windows, criterion="taylor")
    narrow = narrowed(model, source.family, importance.values, WIDTHS)
    for layer in LAYERS:
        decoder_layers(narrow, source.family)[layer].requires_grad_(True)

    training = Training(narrow, output.with_name(f"{output.name}.training") / f"seed{seed}_steps{steps}.pt")
    training.resume()
    corpus = pydoc_corpus()
    stream = token_stream(source.tokenizer, corpus.calibration)
    train(training, Batches(stream, source.tokenizer.bos_token_id, BATCH, SEQ_LEN, seed), steps)

    narrow.eval().requires_grad_(False)
    wide = widened(narrow, source.family, source.config)
    proof = torch.from_numpy(calibration_windows("pydoc", source.tokenizer, PROOF_WINDOWS, SEQ_LEN, seed).ids)
    error = difference(wide, narrow, proof)
    if not error <= TOLERANCE:
        raise SystemExit(f"the widened model computes something else: relative error {error:.1e}")
    save_stock_checkpoint(wide, source.tokenizer, output, torch.float32)
    print(
        f"{corpus.source}: {training.step} steps in {training.elapsed_s / 60:.1f} minutes\n"
        f"{architecture_of(narrow, source.family).total_params:,} parameters, widened to {wide.num_parameters():,}: "
        f"same logits, relative error {error:.1e} (float32)\n{output}"
    )


def train(training: Training, batches: Batches, steps: int) -> None:
    """Up to ``steps`` steps in all, whatever needs no gradient left as it is; the state is kept on the way."""
    training.model.train()
    average = math.nan
    with tqdm(total=steps, initial=training.step, unit="step", mininterval=10) as bar:
        while training.step < steps:
            started = time.monotonic()
            loss = training.update(batches(training.step), training.step / steps, mixed=False)
            training.elapsed_s += time.monotonic() - started
            average = loss if math.isnan(average) else 0.95 * average + 0.05 * loss
            if training.step % SAVE_EVERY == 0 or training.step == steps:
                training.save()
            bar.update()
            bar.set_postfix(loss=f"{average:.3f}", refresh=False)


@torch.no_grad()
def difference(model: Any, reference: Any, ids: torch.Tensor) -> float:
    """Relative error of the logits over ids int64 (N, T), ‖a − b‖₂ / ‖b‖₂."""
    actual, expected = (one(input_ids=ids, use_cache=False).logits for one in (model, reference))
    return relative_error(actual, expected)
