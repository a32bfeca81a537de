"""The text of a distillation: windows of every text that calibrates, by its share, and some held out to judge by."""

import numpy as np

from calibration import training_windows
from core.errors import UsageError
from core.names import SELF
from core.sources import windows_by_share
from run.session import Session

HELD_OUT = 16
READ_AGAIN = 4  # times that what the model wrote is read, since writing more would cost as much as training


def distillation_windows(session: Session, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 (N, T) for so many tokens, fewer where the text has fewer, and (M, T) that share no token with them.

    Texts that exist are drawn from anew. Of what the model wrote itself there is what calibrates, a quarter held out.
    Raises DataError for a text too short to be divided, UsageError for a single window that the model wrote.
    """
    text = session.settings.calibration
    most = max(1, tokens // text.seq_len)
    wanted, aside = (windows_by_share(text.sources, count) for count in (most, HELD_OUT))
    train, check = [], []
    for source, count, held in zip(text.sources, wanted, aside, strict=True):
        if source.name == SELF:
            drawn = _written(session, count)
        else:
            both = training_windows(
                source.name,
                session.tokenizer,
                max(1, count),
                max(1, held),
                text.seq_len,
                text.seed,
                text_column=text.text_column,
                vocab_rows=session.source.config.get_text_config().vocab_size,
            )
            drawn = both[0].ids, both[1].ids
        train.append(drawn[0])
        check.append(drawn[1])
    if not any(map(len, check)):
        raise UsageError(
            "--recover distill holds one window out to decide by: --num_samples 1 is too few, use 2 or more"
        )
    return np.concatenate(train), np.concatenate(check)


def _written(session: Session, count: int) -> tuple[np.ndarray, np.ndarray]:
    written = session.written
    assert written is not None, "--dataset names it, so it was written"
    aside = max(1, len(written) // 4) if len(written) > 1 else 0  # a single one trains; other texts judge
    ids, held = np.split(written.ids, [len(written) - aside])
    times = max(1, min(READ_AGAIN, count // len(ids)))
    return np.tile(ids, (times, 1))[: max(1, count)], held
