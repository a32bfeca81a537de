"""``self``: text that the dense model writes. It needs no data set, no network and no licence, and is of every kind
that the model knows, where a user's text is of one.

A window is one row of tokens. It begins with the tokenizer's BOS, mostly (below), and each further token x is drawn
from what the model expects, at temperature 1 and from the whole vocabulary:

    x = the first token with  Σ_{y ≤ x} p(y | tokens before)  >  u,    u uniform in [0, 1)

The numbers u belong to the row, so neither the batch size nor how many rows are written changes a row by more than
rounding. Where the model ends a text, the row goes on with the beginning of another: BOS, or, for a model with a chat
template, half of the time a short instruction in that template, which the model then answers. So the turns and
end-of-text tokens occur that such a model meets in use.

A BOS that also begins turns in the template says nothing of other texts: what a model writes after it is prose like an
answer's, never a program. Then, as where there is no BOS, texts begin with what stood between two texts in pretraining,
and where the vocabulary has no such token, with a usual first one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from core.as_found import evaluating
from core.batching import with_batch_that_fits
from core.errors import NumericalError, reason_of
from core.memory import gpu_capacity
from core.names import SELF
from core.one_at_a_time import one_at_a_time
from core.progress import tqdm
from core.sampling import drawn_tokens
from core.say import note
from core.windows import TokenWindows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CALIBRATING, EVALUATING, JUDGING, DISTILLING = PURPOSES = ("calibration", "evaluation", "judging", "distillation")
BETWEEN_TEXTS = ("<|endoftext|>", "<|end_of_text|>")  # names of the token that pretraining puts between two texts
USUAL_BEGINNINGS = 256  # capitalised words of the vocabulary that begin a text where there is no BOS
ROWS_AT_ONCE, ROWS_ON_A_GPU = 192, 2048  # there a token of many rows takes hardly longer than one of a few
CACHE_BYTES = 2**31  # keys and values of the first batch that is tried take at most this much
PROBABILITY_BYTES = 26  # on a GPU, of every token of the vocabulary while one is drawn: logits, and three times float64
SHARE_OF_GPU = 8  # or this part of what a GPU has beside the weights
INSTRUCTIONS = (
    "Explain in a few sentences how rain forms.",
    "Write a short story about a lighthouse keeper and a lost dog.",
    "List three things to check before a long bicycle trip.",
    "Summarise the idea of supply and demand for a child.",
    "Write a Python function that counts the words in a file.",
    "What is the difference between a virus and a bacterium?",
    "Translate into French: where is the nearest station?",
    "Draft a polite message that asks a neighbour to be quieter.",
    "A train travels 180 km in two and a half hours. How fast is it on average?",
    "Name a country in South America and say something about its history.",
    "Give me a recipe with lentils and tomatoes.",
    "Which book would you recommend to somebody who likes the sea, and why?",
    "Correct the grammar: she don't knows where is the key.",
    "Describe a market on a summer morning.",
    "What are the arguments for and against working from home?",
    "Hello!",
)
# These calibrate nothing: what a model writes is judged by them (``evaluation/generation.py``).
HELD_OUT_INSTRUCTIONS = (
    "Why is the sky blue?",
    "Write a letter to a friend about a week in the mountains.",
    "Give four tips for learning a language.",
    "What does a compiler do?",
    "Write a SQL query that finds the three oldest customers.",
    "Retell the story of the tortoise and the hare in one paragraph.",
    "How many minutes are there in a week?",
    "Suggest a name for a bakery, and say why it fits.",
)


class Beginnings(NamedTuple):
    """How texts of this model begin.

    plain: token ids of each way to begin an ordinary text, all alike likely. turns: of each instruction in the chat
    template, up to where the model answers; none without a template. ends: ids that end a text or a turn. vocabulary:
    ids below it may be written; the embedding can have more rows than the tokenizer has tokens.
    """

    plain: tuple[tuple[int, ...], ...]
    turns: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]
    vocabulary: int

    def within(self, seq_len: int) -> "Beginnings":
        """Without turns that leave the model less than half of a window; a note where none is left."""
        turns = tuple(ids for ids in self.turns if len(ids) <= seq_len // 2)
        if self.turns and not turns:
            note(
                f"{SELF}: a short instruction in the chat template takes {min(map(len, self.turns))} tokens or more, "
                f"over half of a window of {seq_len}, so none is answered there; to calibrate on answers, use a longer "
                "--seq_len"
            )
        return self._replace(turns=turns)

    @property
    def key(self) -> dict[str, Any]:
        """For the cache: equal keys, equal beginnings."""
        return self._asdict()


def beginnings(tokenizer: "PreTrainedTokenizerBase", ends: int | Sequence[int] | None, vocab_rows: int) -> Beginnings:
    """ends: ids at which the model's generation settings stop, beside the tokenizer's. vocab_rows: of the embedding."""
    vocabulary = min(len(tokenizer), vocab_rows)
    eos, turns = tokenizer.eos_token_id, _turns(tokenizer, vocabulary, INSTRUCTIONS)
    stops = [ends] if isinstance(ends, int) else [*(ends or ())]
    found = {int(end) for end in (*stops, eos) if end is not None and end < vocabulary}
    return Beginnings(_plain(tokenizer, vocabulary, turns), turns, tuple(sorted(found)), vocabulary)


def answerable(tokenizer: "PreTrainedTokenizerBase", vocab_rows: int) -> tuple[tuple[int, ...], ...]:
    """HELD_OUT_INSTRUCTIONS as token ids in the chat template, up to where a model answers; () without a template."""
    return _turns(tokenizer, min(len(tokenizer), vocab_rows), HELD_OUT_INSTRUCTIONS)


@dataclass(frozen=True)
class Request:
    """Rows that a model is to write. purpose: one of PURPOSES; rows of two purposes have no number in common."""

    begin: Beginnings
    count: int
    seq_len: int
    seed: int
    purpose: str


def written_windows(
    model: Any, begin: Beginnings, count: int, seq_len: int, seed: int, purpose: str, batch_size: int | None = None
) -> np.ndarray:
    """int64 (count, seq_len): rows that ``model`` writes; the first rows do not depend on ``count``.

    batch_size: rows at a time, None: as many as should fit, halved where memory runs out. Raises NumericalError where
    the model's logits hold NaN or Inf, UsageError where a single row does not fit in memory. The model is left as
    found.
    """
    return written_together(model, [Request(begin, count, seq_len, seed, purpose)], batch_size)[0]


def written_together(model: Any, requests: Sequence[Request], batch_size: int | None = None) -> list[np.ndarray]:
    """The same for several requests with one way to begin, a row of any beside rows of the others."""
    lengths = np.repeat([request.seq_len for request in requests], [request.count for request in requests])
    longest = max(request.seq_len for request in requests)
    numbers = np.zeros((len(lengths), longest, 2))
    ends = np.cumsum([request.count for request in requests])
    for request, end in zip(requests, ends, strict=True):
        drawn = np.random.default_rng([request.seed, PURPOSES.index(request.purpose)])
        numbers[end - request.count : end, : request.seq_len] = drawn.random((request.count, request.seq_len, 2))
    written = np.empty((len(lengths), longest), dtype=np.int64)
    size, done = batch_size or _first_rows(model, longest), 0
    purposes = " and ".join(request.purpose for request in requests)
    what = f"writing text for {purposes}"
    bar = tqdm(total=len(lengths) * longest, desc=what, unit="token", unit_scale=True, leave=False)
    with bar, evaluating(model):
        while done < len(lengths):
            attempt = partial(_next_rows, model, requests[0].begin, numbers[done:], lengths[done:], bar)
            rows, size = with_batch_that_fits(attempt, size, fixed=batch_size is not None)
            written[done : done + len(rows), : rows.shape[1]] = rows
            done += len(rows)
    parts = np.split(written, ends[:-1])
    return [part[:, : request.seq_len] for request, part in zip(requests, parts, strict=True)]


def windows_of(ids: np.ndarray, split: str, seed: int) -> TokenWindows:
    """The rows as windows. split: which side they serve."""
    return TokenWindows(ids, SELF, split, f"text that the dense model wrote itself (temperature 1, seed {seed})")


def _next_rows(
    model: Any, begin: Beginnings, numbers: np.ndarray, row_lengths: np.ndarray, bar: Any, size: int
) -> np.ndarray:
    """int64 (B, T): the first ``size`` rows, as long as the longest of them. numbers float64 (rows, T, 2): for each
    token, and for each beginning. row_lengths: (rows,).

    Nothing waits for the device until the rows are complete, but for a progress bar's sake every 32 tokens.
    """
    device, length = model.device, int(row_lengths[:size].max())
    u, v = (torch.from_numpy(np.ascontiguousarray(numbers[:size, :length, i].T)).to(device) for i in (0, 1))
    forced, lengths, threshold = _table(begin, device)
    ends = torch.tensor(begin.ends, device=device)

    def chosen(number: torch.Tensor) -> torch.Tensor:
        """int64 (B,): which beginning, from a uniform number: turns from the threshold on, plain texts below it."""
        plain, turns = len(begin.plain), len(begin.turns)
        below = (number / threshold * plain).long()
        above = plain + ((number - threshold) / max(1 - threshold, 1e-12) * turns).long()
        return torch.where(number < threshold, below, above).clamp(max=plain + turns - 1)

    which, place = chosen(v[0]), torch.zeros(u.shape[1], dtype=torch.int64, device=device)
    written = torch.empty(length, u.shape[1], dtype=torch.int64, device=device)
    drawn = torch.zeros_like(place)
    with one_at_a_time(model, u.shape[1], length) as write:
        for t in range(length):
            if t:
                logits = write(written[t - 1].clamp(min=0))
                drawn = drawn_tokens(logits[:, : begin.vocabulary], u[t])
                del logits  # whose memory is the writer's
            begins = place < lengths[which]
            written[t] = torch.where(begins, forced[which, place.clamp(max=forced.shape[1] - 1)], drawn)
            place += 1
            ended = ~begins & torch.isin(written[t], ends)
            which, place = torch.where(ended, chosen(v[t]), which), torch.where(ended, 0, place)
            if t % 32 == 31 or t == length - 1:
                bar.update(u.shape[1] * (t % 32 + 1))
    ids = written.T.cpu().numpy()
    if (ids < 0).any():
        raise NumericalError("the model cannot write text for --dataset self: its logits hold NaN or Inf")
    return ids


def _table(begin: Beginnings, device: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Beginnings as rows (K, longest) with their lengths (K,), and below which number they are plain."""
    every = [*begin.plain, *begin.turns]
    forced = torch.zeros(len(every), max(map(len, every)), dtype=torch.int64)
    for row, ids in zip(forced, every, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    lengths = torch.tensor([len(ids) for ids in every])
    return forced.to(device), lengths.to(device), 0.5 if begin.turns else 1.0


def _first_rows(model: Any, seq_len: int) -> int:
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_row = 2 * config.num_hidden_layers * heads * width * seq_len * model.dtype.itemsize
    room = gpu_capacity(model.device)
    if room is None:
        return int(min(ROWS_AT_ONCE, max(1, CACHE_BYTES // a_row)))
    a_row += PROBABILITY_BYTES * config.vocab_size
    room -= sum(parameter.nbytes for parameter in model.parameters())
    return int(min(ROWS_ON_A_GPU, max(1, max(CACHE_BYTES, room // SHARE_OF_GPU) // a_row)))


def _plain(
    tokenizer: "PreTrainedTokenizerBase", vocabulary: int, turns: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """How ordinary texts begin: a BOS that begins no turn, else what stands between texts, else a usual first token."""
    bos = tokenizer.bos_token_id
    if bos is not None and not any(bos in turn[1:] for turn in turns):
        return ((int(bos),),)
    special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    between = tuple((number,) for token, number in special if token in BETWEEN_TEXTS and number < vocabulary)
    return between or _usual_first_tokens(tokenizer, vocabulary)


def _usual_first_tokens(tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> tuple[tuple[int, ...], ...]:
    """Words with a capital, of the lowest ids: vocabularies are in the order of how often their tokens occur. All
    ordinary tokens where there is no such word."""
    special = set(tokenizer.all_special_ids)
    ordinary = [number for number in range(vocabulary) if number not in special]
    texts = tokenizer.batch_decode([[number] for number in ordinary])
    words = [number for number, text in zip(ordinary, texts, strict=True) if re.fullmatch(r"\s?[A-Z][a-z]*", text)]
    return tuple((number,) for number in (words or ordinary)[:USUAL_BEGINNINGS])


def _turns(
    tokenizer: "PreTrainedTokenizerBase", vocabulary: int, instructions: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    if not getattr(tokenizer, "chat_template", None):
        return ()
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    found = []
    try:
        for instruction in instructions:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": instruction}],
                tokenize=False,
                add_generation_prompt=True,
                date_string="1 January 2026",  # templates that name the day would name another one tomorrow
            )
            ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            found.append(tuple(ids if ids[: len(bos)] == bos else bos + ids))
    except Exception as error:  # a template is a program of its author's
        note(f"the chat template does not work ({reason_of(error)}), so no instruction is answered")
        return ()
    return tuple(ids for ids in found if ids and max(ids) < vocabulary)
