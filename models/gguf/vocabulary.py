"""The tokenizer as GGUF metadata: tokens, merges, types, special ids, and the name of its pre-tokenizer.

Byte-level BPE only. The engine knows pre-tokenizers by name and has their patterns built in, so ours must be one of
them: what cuts text differently would give other tokens without any error.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core.errors import ModelError
from models.loading import ModelSource

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types of the format
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CASELESS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
QWEN2 = rf"{_CASELESS}|{_WORDS}|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
TEKKEN = rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# (steps of the pre-tokenizer, whether a word that is a token needs no merges) -> the engine's name
PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    (("gpt2",), False): "gpt-2",
    (("digits", "gpt2"), False): "smollm",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "smaug-bpe",
    ((QWEN2,), False): "qwen2",
    ((TEKKEN,), True): "tekken",
}
INEXACT = {"tekken": "the engine treats letters beyond a-z and A-Z as of either case: words like 'Привет' may be split"}


@dataclass(frozen=True)
class Vocabulary:
    """All of the tokenizer that GGUF holds. ids are None where there is no such token.

    tokens: V strings, byte-level characters for normal tokens. types: V token types. merges: "left right" by rank.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: int | None
    eos: int
    eot: int | None
    pad: int | None
    add_bos: bool
    add_eos: bool
    chat_template: str | None
    notes: tuple[str, ...]


def vocabulary_of(source: ModelSource) -> Vocabulary:
    """Read the loaded tokenizer. Raises ModelError where the engine would not cut text the same way."""
    tokenizer = source.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal(source, "has no fast form (tokenizer.json)")
    described = json.loads(backend.to_str())
    model = described["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or not _has_byte_level(described):
        raise _refusal(source, f"is not byte-level BPE ({model['type']})")
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise _refusal(source, f"uses {setting}, which GGUF cannot express")
    added_ids = {token["id"]: token for token in described["added_tokens"]}
    tokens, types = _tokens(source, model["vocab"], added_ids)
    eos = _first(tokenizer.eos_token_id, source.config.eos_token_id)
    if eos is None:
        raise _refusal(source, "has no end-of-sequence token, and the engine would use another token in its place")
    add_bos, add_eos = _additions(source)
    pre = _pre_tokenizer(source, described["pre_tokenizer"], bool(model.get("ignore_merges")))
    return Vocabulary(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        bos=_first(tokenizer.bos_token_id),
        eos=eos,
        eot=_second_end(source, eos),
        pad=_first(tokenizer.pad_token_id),
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=_chat_template(tokenizer),
        notes=tuple(_notes(source, pre, described, added_ids)),
    )


def _refusal(source: ModelSource, reason: str) -> ModelError:
    return ModelError(f"{source.path} cannot be exported to GGUF: its tokenizer {reason}")


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    return list(pre_tokenizer["pretokenizers"]) if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _has_byte_level(described: dict[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(described["pre_tokenizer"]))


def _pre_tokenizer(source: ModelSource, described: dict[str, Any], ignore_merges: bool) -> str:
    """The engine's name for the steps by which text is cut before merging."""
    steps = []
    for step in _steps(described):
        if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            raise _refusal(source, "puts a space before every text (add_prefix_space), which GGUF's BPE does not")
        if step["type"] == "ByteLevel":
            steps += ["gpt2"] if step.get("use_regex", True) else []
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            steps.append(step["pattern"].get("Regex", "literal"))
        elif step["type"] == "Digits" and step["individual_digits"]:
            steps.append("digits")
        else:
            steps.append(step["type"])
    name = PRE_TOKENIZERS.get((tuple(steps), ignore_merges))
    if name is None:
        known = ", ".join(PRE_TOKENIZERS.values())
        raise _refusal(source, f"splits text by {' then '.join(steps)!r}, none of the known ways ({known})")
    return name


def _tokens(
    source: ModelSource, vocabulary: dict[str, int], added: dict[int, dict[str, Any]]
) -> tuple[list[str], list[int]]:
    """Token strings and types by id; rows of the embedding without a token become unused ones."""
    by_id = {index: token for token, index in vocabulary.items()} | {i: t["content"] for i, t in added.items()}
    size = source.config.vocab_size
    if max(by_id) >= size:
        raise _refusal(source, f"has token {max(by_id)}, but the embedding has {size} rows")
    tokens, types = [], []
    for index in range(size):
        if index not in by_id:
            kind = UNUSED
        elif index not in added:
            kind = NORMAL
        else:
            kind = CONTROL if added[index]["special"] else USER_DEFINED
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        types.append(kind)
    return tokens, types


def _additions(source: ModelSource) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before and EOS behind a text; any other addition is refused."""
    tokenizer = source.tokenizer
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for add_bos in (False, True):
        for add_eos in (False, True):
            if full == [bos] * add_bos + plain + [eos] * add_eos:
                return add_bos, add_eos
    raise _refusal(source, f"turns 'a' into {full}, which is not {plain} with BOS before or EOS behind")


def _first(*candidates: Any) -> int | None:
    """The first id that is there; of a list its first."""
    for candidate in candidates:
        if isinstance(candidate, list) and candidate:
            return int(candidate[0])
        if isinstance(candidate, int):
            return candidate
    return None


def _second_end(source: ModelSource, eos: int) -> int | None:
    """The token that ends a turn, where the checkpoint stops at several tokens (llama 3's ``<|eot_id|>``)."""
    ends = source.config.eos_token_id
    others = [end for end in ends if end != eos] if isinstance(ends, list) else []
    return int(others[0]) if others else None


def _chat_template(tokenizer: Any) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    return template.get("default") if isinstance(template, dict) else template


def _notes(source: ModelSource, pre: str, described: dict[str, Any], added: dict[int, dict[str, Any]]) -> Iterator[str]:
    """Where the engine's tokens may differ; ModelError for a normalizer it lacks."""
    if pre in INEXACT:
        yield INEXACT[pre]
    normalizer = described.get("normalizer")
    if normalizer and normalizer["type"] == "NFC":
        yield "the tokenizer composes accents (NFC) and the engine does not: give it composed text"
    elif normalizer and not (normalizer["type"] == "Sequence" and not normalizer["normalizers"]):
        raise _refusal(source, f"normalises text ({normalizer['type']}), which the engine does not")
    odd = [t["content"] for t in added.values() if t["lstrip"] or t["rstrip"] or t["single_word"]]
    if odd:
        yield f"the engine keeps the spaces around {', '.join(odd[:3])}, which the tokenizer removes"
