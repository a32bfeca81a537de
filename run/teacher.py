"""Recovery's teacher, the dense model beside the cut one: in memory too where both fit, else its weights come and go.

So a card that holds one model, and not two, is enough. The teacher computes the same either way; as its weights are
read anew for every pass, training takes longer.
"""

from dataclasses import dataclass
from typing import Any

import torch

from core import ranks
from core.memory import bytes_text
from core.say import note
from run.engine_choice import ACTIVATIONS_BYTES, free_for_one
from run.session import Session
from run.streamed_model import streamed_dense

READ_AGAIN = "the dense model's weights are read from the checkpoint whenever they are needed, which takes longer"


class Teacher:
    """The session's dense model while another is trained; once its weights come and go, they go on doing so."""

    def __init__(self, session: Session) -> None:
        self.session, self._away = session, None

    _away: Any  # the streamed model, once it was needed
    _fits = -1  # bytes of training that were found to fit beside the dense model in memory

    @property
    def can_leave(self) -> bool:
        """Whether memory can be had by streaming it: not where it is the caller's, or streamed already."""
        return self.session.given is None and not self.session.streamed and self._away is None

    def model(self, training: int = 0) -> Any:
        """training: bytes that it takes beside the models, but for activations. All processes decide alike."""
        if self.can_leave and training > self._fits:
            rooms = ranks.gathered(self._room(training), "teacher")
            crowded = next((room for room in rooms if not room.holds_both), None)
            if crowded is not None and any(room.gains for room in rooms):
                self.leave(
                    f"the dense model and what training takes need {bytes_text(crowded.needed)}, and "
                    f"{bytes_text(crowded.free or 0)} are free on {self.session.device}: {READ_AGAIN}"
                )
            self._fits = training
        return self.session.dense() if self._away is None else self._away

    def would_help(self, training: int) -> bool:
        """Whether training that ran out of memory, of about so many bytes, may fit once the dense model is streamed."""
        return self.can_leave and all(ranks.gathered(self._room(training).trains_alone, "teacher"))

    def leave(self, why: str) -> None:
        """Give its memory back; from now on ``model`` is one whose weights come and go. why: a note."""
        note(why)
        session = self.session
        session.drop_dense()
        if session.device.type == "cuda":
            torch.cuda.empty_cache()
        self._away = streamed_dense(session.source, session.streaming)

    def _room(self, training: int) -> "Room":
        session = self.session
        weights = session.architecture.total_params * session.dtype.itemsize
        free = free_for_one(session.settings, session.device)
        if free is not None and session.holds_dense:
            free += weights  # as if it was still to come
        return Room(weights, training + min(weights, ACTIVATIONS_BYTES), free)


@dataclass(frozen=True)
class Room:
    """Bytes for the dense model's weights and for training beside them, and those that both may take; None where
    nothing tells."""

    weights: int
    training: int
    free: int | None

    @property
    def needed(self) -> int:
        return self.weights + self.training

    @property
    def holds_both(self) -> bool:
        return self.free is None or self.needed <= self.free

    @property
    def gains(self) -> bool:
        """Whether it helps to stream: training fits then, or the dense model alone would not."""
        loads = self.free is None or self.weights <= self.free
        return not self.holds_both and (self.trains_alone or not loads)

    @property
    def trains_alone(self) -> bool:
        return self.free is None or self.training <= self.free
