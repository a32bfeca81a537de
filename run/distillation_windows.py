"""The text of a distillation: windows of every text that calibrates, by its share, and some held out to judge by."""

import numpy as np

from calibration import training_windows
from core.names import SELF
from core.sources import windows_by_share
from run.self_windows import written_to_distil
from run.session import Session

HELD_OUT = 16
READ_AGAIN = 4  # times that a window of the model's own text is read, since writing takes time as well


def distillation_windows(session: Session, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 (N, T) for so many tokens, fewer where the text has fewer, and (M, T) that share no token with them.

    Texts that exist are drawn from anew, and the dense model writes anew. Raises DataError for a text too short to be
    divided.
    """
    text = session.settings.calibration
    most = max(1, tokens // text.seq_len)
    wanted, aside = (windows_by_share(text.sources, count) for count in (most, HELD_OUT))
    train, check = [], []
    for source, *counts in zip(text.sources, wanted, aside, strict=True):
        count, held = (max(1, number) for number in counts)
        if source.name == SELF:
            drawn = _written(session, count, held)
        else:
            both = training_windows(
                source.name,
                session.tokenizer,
                count,
                held,
                text.seq_len,
                text.seed,
                text_column=text.text_column,
                vocab_rows=session.source.config.get_text_config().vocab_size,
            )
            drawn = both[0].ids, both[1].ids
        train.append(drawn[0])
        check.append(drawn[1])
    return np.concatenate(train), np.concatenate(check)


def _written(session: Session, count: int, held: int) -> tuple[np.ndarray, np.ndarray]:
    different = -(-count // READ_AGAIN)
    ids, check = np.split(written_to_distil(session, different + held), [different])
    return np.tile(ids, (READ_AGAIN, 1))[:count], check
