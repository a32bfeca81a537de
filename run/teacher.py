"""Recovery's teacher, the dense model beside the cut one: in memory too where both fit, else its weights come and go.

So a card that holds one model, and not two, is enough. The teacher computes the same either way; as its weights are
read anew for every pass, training takes longer.
"""

from typing import Any

import torch

from core.memory import free_bytes
from core.say import note
from run.engine_choice import ACTIVATIONS_BYTES, gigabytes
from run.session import Session
from run.streamed_model import streamed_dense


class Teacher:
    """The session's dense model while another is trained; once its weights come and go, they go on doing so."""

    def __init__(self, session: Session) -> None:
        self.session, self._away = session, None

    _away: Any  # the streamed model, once it was needed

    @property
    def can_leave(self) -> bool:
        """Whether memory can be had by streaming it: not where it is the caller's, or streamed already."""
        return self.session.given is None and not self.session.streamed and self._away is None

    def model(self, beside: int = 0) -> Any:
        """beside: bytes that training takes on top of the model that is trained, but for activations."""
        if self.can_leave and not self._fits(beside):
            self.leave("")
        return self.session.dense() if self._away is None else self._away

    def leave(self, why: str) -> None:
        """Give its memory back; from now on ``model`` is one whose weights come and go. why: a note, if it is not
        said yet."""
        if why:
            note(why)
        session = self.session
        session.drop_dense()
        if session.device.type == "cuda":
            torch.cuda.empty_cache()
        self._away = streamed_dense(session.source, session.streaming)

    def _fits(self, beside: int) -> bool:
        session = self.session
        free = free_bytes(session.device)
        weights = session.architecture.total_params * session.dtype.itemsize
        needed = beside + min(weights, ACTIVATIONS_BYTES) + (0 if session.holds_dense else weights)
        if free is None or needed <= free:
            return True
        note(
            f"recovery with the dense model in memory needs {gigabytes(needed)}, and {gigabytes(free)} are free on "
            f"{session.device}: its weights are read from the checkpoint whenever they are needed, which takes longer"
        )
        return False
