"""Whether a model still writes sane text: what it writes after held-out beginnings, greedily and sampled.

    repeated_4grams = 1 - different / all 4-grams of tokens, mean over texts; 0 for a text of fewer than 4 tokens
    ended           = share of texts that come to an end-of-text token before their length is reached
    length          = tokens written before that, mean over texts

Beginnings are of every evaluated text, and of instructions in the chat template where the model has one. They share
PROMPTS between them, so that several texts take hardly longer than one: what is written to them is written together.

Sampling is from the model's whole distribution at temperature 1. Every model is given the same random numbers, so what
two models write differs only where their distributions do.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from core.as_found import evaluating
from core.batching import with_batch_that_fits
from core.one_at_a_time import Writer, one_at_a_time
from core.progress import tqdm
from core.sampling import drawn_tokens
from core.say import note
from core.windows import TokenWindows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 16, 32, 128  # fewer tokens where the model's context is shorter
FEWEST = 4  # prompts of a text, however many texts there are
GRAM = 4
WAYS = ("greedy", "sampled")
CHAT = "chat template"  # what stands for a text's name
Chosen = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # logits (R, V), which new token (R,) -> tokens (R,)


def generation_health(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Mapping[str, TokenWindows],
    *,
    chat: Sequence[Sequence[int]] = (),
    batch_size: int | None,
    seed: int,
    label: str,
) -> dict[str, Any]:
    """{"prompts", "prompt_tokens", "new_tokens", "dataset", "greedy": {...}, "sampled": {...}, "texts": {name: the same
    without new_tokens and dataset}}; the first are over all texts, "dataset" names them.

    texts: consecutive held-out text by name, which the beginnings are taken from. chat: token ids of instructions in
    the model's template, up to where it answers; told of as CHAT. batch_size: beginnings continued at once, None as
    many as fit. Each way of writing has the measures above with their standard errors over texts; ``ended`` is None
    where neither model nor tokenizer names an end, all are None where the model yields NaN. "prompt_tokens" is the
    longest. The model is left as found. UsageError where memory does not suffice.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", PROMPT_TOKENS + NEW_TOKENS)
    longest, turns = max(2, min(PROMPT_TOKENS, context // 2)), [ids for ids in chat if len(ids) <= context // 2]
    if chat and not turns:
        note(
            f"every instruction in the chat template takes over half of the model's context of {context} tokens, so "
            "what is written after one is not measured"
        )
    most = max(FEWEST, PROMPTS // (len(texts) + bool(turns)))
    prompts = {name: prompts_of(windows, tokenizer.bos_token_id, longest, most) for name, windows in texts.items()}
    rows: dict[str, list[np.ndarray]] = {name: list(found) for name, found in prompts.items()}
    if turns:
        rows[CHAT] = [np.array(ids, dtype=np.int64) for ids in turns[:most]]
    every = [row for found in rows.values() for row in found]
    new_tokens = min(NEW_TOKENS, context - max(map(len, every)))
    written = _written(model, every, new_tokens, batch_size=batch_size, seed=seed, label=label)
    ends = end_tokens(model, tokenizer)

    def told(where: slice) -> dict[str, Any]:
        sizes = {"prompts": len(every[where]), "prompt_tokens": max(map(len, every[where]))}
        return sizes | {way: health_of(found[where], ends) for way, found in zip(WAYS, written, strict=True)}

    stops = np.cumsum([len(found) for found in rows.values()])
    each = {name: told(slice(stop - len(rows[name]), stop)) for name, stop in zip(rows, stops, strict=True)}
    return told(slice(None)) | {"new_tokens": new_tokens, "dataset": ",".join(rows), "texts": each}


def prompts_of(windows: TokenWindows, bos: int | None, length: int, most: int = PROMPTS) -> np.ndarray:
    """int64 (P, length), P up to ``most``: beginnings spread evenly over the text, each after a BOS where the windows
    have one."""
    ids = windows.ids
    starts_with_bos = bos is not None and bool((ids[:, 0] == bos).all())
    text = (ids[:, 1:] if starts_with_bos else ids).reshape(-1)
    taken = min(length - starts_with_bos, len(text))
    count = max(1, min(most, len(text) // taken))
    starts = np.arange(count, dtype=np.int64) * ((len(text) - taken) // count)
    prompts = text[starts[:, None] + np.arange(taken)]
    return np.insert(prompts, 0, bos, axis=1) if starts_with_bos and bos is not None else prompts


def end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Tokens that end a text: the generation config's, else the tokenizer's; none where neither names one."""
    found = getattr(model.generation_config, "eos_token_id", None)
    if found is None:
        found = tokenizer.eos_token_id
    return () if found is None else tuple(found) if isinstance(found, (list, tuple)) else (int(found),)


def health_of(texts: np.ndarray, ends: tuple[int, ...]) -> dict[str, float | None]:
    """Measures of texts, int64 (P, N), of which what follows an end token does not count. -1 stands for a token that
    the model could not choose: then all are None."""
    if (texts < 0).any():
        return dict.fromkeys(("repeated_4grams", "repeated_4grams_stderr", "ended", "ended_stderr", "length"))
    is_end = np.isin(texts, ends)
    ended = np.asarray(is_end.any(axis=1))
    lengths = np.where(ended, is_end.argmax(axis=1), texts.shape[1])
    repeated = np.array([repeated_share(text[:length]) for text, length in zip(texts, lengths, strict=True)])
    return {
        "repeated_4grams": float(repeated.mean()),
        "repeated_4grams_stderr": _standard_error(repeated),
        "ended": float(ended.mean()) if ends else None,
        "ended_stderr": _standard_error(ended.astype(np.float64)) if ends else None,
        "length": float(lengths.mean()),
    }


def repeated_share(tokens: np.ndarray) -> float:
    """Share of the 4-grams of int64 (N,) that have occurred before."""
    grams = [tuple(tokens[i : i + GRAM].tolist()) for i in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _standard_error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def _written(
    model: "PreTrainedModel",
    prompts: Sequence[np.ndarray],
    new_tokens: int,
    *,
    batch_size: int | None,
    seed: int,
    label: str,
) -> np.ndarray:
    """int64 (2, P, new_tokens): greedy and sampled continuations of P rows of token ids, int64 (T,) each. Rows of a
    length that others have are continued with these, and all further ones together."""
    chances = np.random.default_rng(seed).random((len(prompts), new_tokens))
    written = np.empty((2, len(prompts), new_tokens), dtype=np.int64)
    lengths = [len(row) for row in prompts]
    common = max(lengths, key=lengths.count)
    groups = [[i for i, length in enumerate(lengths) if (length == common) is alike] for alike in (True, False)]
    bar = tqdm(total=len(prompts), desc=f"{label}: writing", unit="text", leave=False)
    with evaluating(model), bar:
        for group in groups:
            done, size = 0, min(batch_size or len(group), len(group))
            while done < len(group):
                left = group[done:]
                attempt = partial(_continued, model, [prompts[i] for i in left], chances[left])
                texts, size = with_batch_that_fits(attempt, size, fixed=batch_size is not None)
                written[:, left[: texts.shape[1]]] = texts
                done += texts.shape[1]
                bar.update(texts.shape[1])
    return written


def _continued(model: "PreTrainedModel", prompts: Sequence[np.ndarray], chances: np.ndarray, size: int) -> np.ndarray:
    """int64 (2, B, N) of the first ``size`` prompts, B fewer where fewer are left; both ways share every pass."""
    taken = [*prompts[:size]] * 2
    drawn = torch.from_numpy(chances[:size]).to(model.device)

    def chosen(logits: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """int64 (2 B,): the next token of each row, its ``step``th new one."""
        greedy, sampled = logits.float().chunk(2)
        chance = drawn.gather(1, step[len(drawn) :, None])[:, 0]
        return torch.cat([_most_likely(greedy), drawn_tokens(sampled, chance)])

    new = chances.shape[1]
    with one_at_a_time(model, len(taken), max(map(len, taken)) + new - 1) as write:
        follow = _token_by_token if write.captured else _after_all_at_once
        written = follow(write, taken, new, chosen)
    return written.cpu().numpy().reshape(2, len(drawn), -1)


def _after_all_at_once(write: Writer, rows: Sequence[np.ndarray], new: int, chosen: Chosen) -> torch.Tensor:
    """int64 (R, N): what follows rows that are read in one pass, shorter ones padded on the left."""
    device, longest = write.model.device, max(map(len, rows))
    ids = torch.tensor(np.stack([np.pad(row, (longest - len(row), 0)) for row in rows]), device=device)
    real = torch.tensor([[t >= longest - len(row) for t in range(longest)] for row in rows], device=device)
    padded = any(len(row) < longest for row in rows)
    steps = torch.arange(new, device=device)[:, None].expand(new, len(rows))
    written: list[torch.Tensor] = []
    for step in steps:
        # Without a mask where it would say nothing: kernels are faster, and positions are the model's in either case.
        logits = write.after(ids, real.long() if padded else None)
        written.append(chosen(logits, step))
        ids = written[-1].clamp(min=0)[:, None]
        real = torch.cat([real, torch.ones_like(ids, dtype=torch.bool)], dim=1)
    return torch.stack(written, dim=1)


def _token_by_token(write: Writer, rows: Sequence[np.ndarray], new: int, chosen: Chosen) -> torch.Tensor:
    """The same, with a call for each token that is read too: each row goes on as soon as it has been read."""
    device, longest = write.model.device, max(map(len, rows))
    given = torch.tensor(np.stack([np.pad(row, (0, longest - len(row))) for row in rows]), device=device)
    lengths, places = torch.tensor([len(row) for row in rows], device=device), torch.arange(new, device=device)
    written = torch.zeros(len(rows), new, dtype=torch.int64, device=device)
    last = written[:, 0]
    for t in range(longest + new - 1):
        logits = write(torch.where(t < lengths, given[:, min(t, longest - 1)], last.clamp(min=0)))
        step = t + 1 - lengths
        last = chosen(logits, step.clamp(0, new - 1))
        written = torch.where(places == step[:, None], last[:, None], written)
    return written


def _most_likely(logits: torch.Tensor) -> torch.Tensor:
    """int64 (B,), -1 where logits (B, V) are not finite."""
    return torch.where(logits.isfinite().all(-1), logits.argmax(-1), -1)
