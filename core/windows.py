"""Token windows: what calibration and evaluation hand to the stages that run the model."""

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenWindows:
    """N token sequences of one length T, never padded.

    ids: int64 array of shape (N, T).
    dataset: the name the user gave (``pydoc``, ``wikitext2``, a path).
    split: ``calibration`` or ``evaluation``.
    source: one sentence that says where the text came from (split, file, Python version).
    text_bytes: UTF-8 bytes of text behind the predicted tokens, for bits per byte; None where not counted.
    """

    ids: np.ndarray
    dataset: str
    split: str
    source: str
    text_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.dtype != np.int64:
            raise ValueError(f"windows are int64 of shape (N, T), not {self.ids.dtype} {self.ids.shape}")

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def seq_len(self) -> int:
        return int(self.ids.shape[1])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over shape and token ids: equal fingerprints mean equal windows."""
        digest = hashlib.sha256(repr(self.ids.shape).encode())
        digest.update(np.ascontiguousarray(self.ids).tobytes())
        return digest.hexdigest()

    def head(self, n: int) -> "TokenWindows":
        """The first n windows (all of them if there are fewer)."""
        return TokenWindows(self.ids[:n], self.dataset, self.split, self.source, None)
