"""Text for one model: what calibrates, what a recovery trains on, what is evaluated; ``self`` is written by the model.

The three share no token. Texts that exist have a split for calibration and one for evaluation. Of what the model writes
rows for calibration and for evaluation have no number in common; development and confirmation are every other row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.quality.case import Training
from benchmarks.quality.texts import CONFIRMATION, held_out_windows
from calibration import calibration_windows, training_windows
from calibration.mixing import counts_of, mixed
from calibration.self_text import (
    CALIBRATING,
    DISTILLING,
    EVALUATING,
    Beginnings,
    beginnings,
    windows_of,
    written_windows,
)
from core.names import SELF
from core.sources import sources_of
from core.windows import TokenWindows
from models.loading import ModelSource, generation_config_of
from run.distillation_windows import Divided, divided, times_read


@dataclass
class Texts:
    """model: the dense one, as long as it is asked for what it writes. begin: how its texts begin."""

    model: Any
    tokenizer: Any
    begin: Beginnings
    seq_len: int

    @staticmethod
    def of(source: ModelSource, model: Any, seq_len: int) -> "Texts":
        rows = source.config.get_text_config().vocab_size
        begin = beginnings(source.tokenizer, generation_config_of(source).eos_token_id, rows)
        return Texts(model, source.tokenizer, begin, seq_len)

    def written(self, count: int, purpose: str, seed: int) -> TokenWindows:
        ids = written_windows(self.model, self.begin, count, self.seq_len, seed, purpose)
        return windows_of(ids, purpose, seed)

    def calibration(self, dataset: str, samples: int, seed: int) -> TokenWindows:
        """dataset: as ``--dataset`` takes it."""
        parts = {
            name: self.written(count, CALIBRATING, seed)
            if name == SELF
            else calibration_windows(name, self.tokenizer, count, self.seq_len, seed)
            for name, count in counts_of(sources_of(dataset), samples).items()
        }
        return mixed(parts, dataset, seed)

    def training(self, dataset: str, seed: int, tokens: int) -> Training:
        """Text as a run of the program trains on."""

        def read(name: str, count: int, held: int) -> Divided:
            train, check = training_windows(name, self.tokenizer, count, held, self.seq_len, seed)
            return train.ids, check.ids

        def write(count: int) -> np.ndarray:
            return self.written(count, DISTILLING, seed).ids

        times = times_read(self.model.device, self.model.num_parameters())
        return Training(tokens, *divided(sources_of(dataset), tokens, self.seq_len, read, write, times))

    def held_out(self, names: Sequence[str], part: str, count: int) -> dict[str, TokenWindows]:
        """Up to ``count`` windows of one part of each text."""
        found = held_out_windows(self.tokenizer, part, count, self.seq_len)
        return {name: self.self_written(part, count) if name == SELF else found[name] for name in names}

    def self_written(self, part: str, count: int) -> TokenWindows:
        rows = self.written(2 * count, EVALUATING, 0)
        return windows_of(rows.ids[part == CONFIRMATION :: 2], EVALUATING, 0)
