"""Log-likelihoods of several answers to one context, whose own tokens pass through the model once.

A multiple-choice item asks for ln p(answer | context) of each of its answers. lm-eval runs the context again with every
answer, and makes logits of all its tokens. Here the context runs once, without its last token, and leaves its keys and
values; on top of those its last token and all tokens of an answer but the last give the logits that are scored, and no
others. Contexts of one length run together, so nothing before an answer is padded. What is padded behind a shorter one
is seen by nothing that counts.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

# lm-eval's: whatever it was made of, tokens of the context and of the answer.
Request = tuple[Any, list[int], list[int]]
Score = tuple[float, bool]  # ln p of the answer, in nats, and whether each of its tokens is the likeliest one


@dataclass(frozen=True)
class Shared:
    """One context, at least two tokens, and its answers by their place among the requests."""

    context: tuple[int, ...]
    answers: dict[int, list[int]]

    def __len__(self) -> int:
        return len(self.answers)


def shared_contexts(requests: Sequence[Request], longest: int) -> list[Shared]:
    """Those that more than one request has, the longest first.

    longest: tokens that the model reads. A request that must be cut to that is left out. So are requests that lm-eval
    itself runs once for all answers, which have one token each, and those that it refuses.
    """
    places: dict[tuple[int, ...], dict[int, list[int]]] = defaultdict(dict)
    for place, (_, context, answer) in enumerate(requests):
        if len(context) > 1 and answer and len(context) + len(answer) <= longest + 1:
            places[tuple(context)][place] = answer
    found = [Shared(context, answers) for context, answers in places.items() if len(answers) > 1]
    several = [one for one in found if max(map(len, one.answers.values())) > 1]
    return sorted(several, key=lambda one: (-len(one.context), one.context))


@torch.no_grad()
def scores_of(
    model: Any, contexts: Sequence[Shared], batch_size: int, softmax_dtype: torch.dtype | None = None
) -> Iterator[tuple[int, Score]]:
    """(place, score) of every answer to ``contexts``, which are sorted by length.

    batch_size: contexts, and then answers, at once. softmax_dtype: of log-probabilities; None: the logits' own.
    """
    for _, alike in groupby(contexts, key=lambda one: len(one.context)):
        together = list(alike)
        for start in range(0, len(together), batch_size):
            yield from _scored(model, together[start : start + batch_size], batch_size, softmax_dtype)


def _scored(
    model: Any, contexts: list[Shared], batch_size: int, softmax_dtype: torch.dtype | None
) -> Iterator[tuple[int, Score]]:
    """The same of contexts of one length, no more than fit into a batch."""
    read = torch.tensor([one.context[:-1] for one in contexts], device=model.device)
    known = model(input_ids=read, use_cache=True, logits_to_keep=1).past_key_values
    rows = [(number, place, one.answers[place]) for number, one in enumerate(contexts) for place in one.answers]
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        numbers = torch.tensor([number for number, _, _ in some])  # on the CPU: layers may lie on several devices
        given = _padded([[contexts[number].context[-1], *answer[:-1]] for number, _, answer in some], model.device)
        wanted = _padded([answer for _, _, answer in some], model.device)
        logits = model(input_ids=given, past_key_values=_selected(known, numbers), use_cache=True).logits
        log_p = F.log_softmax(logits, -1, dtype=softmax_dtype)
        likeliest = (log_p.argmax(-1) == wanted).cpu()  # once: each answer is read by itself
        chosen = log_p.gather(2, wanted[..., None])[..., 0].cpu()
        for (_, place, answer), nats, hit in zip(some, chosen, likeliest, strict=True):
            yield place, (float(nats[: len(answer)].sum()), bool(hit[: len(answer)].all()))


def _padded(rows: list[list[int]], device: torch.device) -> torch.Tensor:
    """int64 (B, T): shorter rows end in zeros."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)


def _selected(known: Any, numbers: torch.Tensor) -> Any:
    """Keys and values of these contexts, one a row, for one more pass; ``known`` stays as it is."""
    selected = copy.copy(known)
    selected.layers = [copy.copy(layer) for layer in known.layers]
    selected.batch_select_indices(numbers)
    return selected
