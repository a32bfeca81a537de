"""The tokenizer of a saved model: the dense folder's own files where they will do, else written anew and set right.

Serialising a tokenizer again changes what other programs read: transformers 5 writes classes that its version 4 does
not know, and drops files (``special_tokens_map.json``, ``tokenizer.model``) that others look for. Bytes that were good
for the dense model are good for the pruned one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

CONFIG, FAST = "tokenizer_config.json", "tokenizer.json"
OF_ONE_LOADING = ("is_local", "local_files_only", "backend")  # how the tokenizer was read, not what it is
STALE = ("special_tokens_map.json", "added_tokens.json")  # would be read beside what save_pretrained writes
EVERYWHERE = "PreTrainedTokenizerFast"  # the class of any tokenizer.json, under the name that all releases know
PROBE = "The first line, naïve: 1,024 x 3.5 = ?\n\tdef f(x):  return x  # 你好 🙂 ﬁ\r\n  <s>[INST] a</s>"


def save_tokenizer(tokenizer: Any, config: Any, folder: Path) -> None:
    """Make ``folder``, which holds what travelled from the dense model, load as ``tokenizer``.

    config: of the saved model, since its type has a say in which class is chosen. Of several ways the first is taken
    whose tokenizer does what the given one does: the files as they are; the same under a class name that says what the
    dense model's type implied; the tokenizer as transformers writes it, under the names of its class that older
    releases know first.
    """
    for _ in _ways(tokenizer, folder):
        if _loads_as(tokenizer, config, folder):
            break
    _add_fast_form(tokenizer, config, folder)


def _ways(tokenizer: Any, folder: Path) -> Iterator[None]:
    """The folder in one state after another; the last is what ``save_pretrained`` leaves."""
    declared, own = _read(folder / CONFIG).get("tokenizer_class"), type(tokenizer).__name__
    if any((folder / name).is_file() for name in _names(tokenizer)):
        yield
        for name in dict.fromkeys((EVERYWHERE, own)):
            _edit(folder / CONFIG, tokenizer_class=name)
            yield
    for name in STALE:
        (folder / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    _edit(folder / CONFIG, **dict.fromkeys(OF_ONE_LOADING))
    for name in dict.fromkeys((declared or EVERYWHERE, EVERYWHERE, own)):
        _edit(folder / CONFIG, tokenizer_class=name)
        yield


def _names(tokenizer: Any) -> set[str]:
    """Files that hold a vocabulary, by the tokenizer's own word."""
    return {FAST, "tokenizer.model", *tokenizer.vocab_files_names.values()}


def _loads_as(tokenizer: Any, config: Any, folder: Path) -> bool:
    """Whether the folder gives a tokenizer that cuts text, knows special tokens and chats as the given one."""
    try:
        found = transformers.AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
        return all(bool(_behaviour(found)[key] == value) for key, value in _behaviour(tokenizer).items())
    except Exception:  # whatever keeps these files from being read: another way is tried
        return False


def _behaviour(tokenizer: Any) -> dict[str, Any]:
    ids = tokenizer(PROBE)["input_ids"]
    return {
        "ids": ids,
        "bare": tokenizer(PROBE, add_special_tokens=False)["input_ids"],
        "text": tokenizer.decode(ids),
        "special": tokenizer.special_tokens_map,
        "special_ids": sorted(tokenizer.all_special_ids),
        "vocabulary": tokenizer.get_vocab(),
        "chat": tokenizer.chat_template,
        "length": tokenizer.model_max_length,
        "padding": tokenizer.padding_side,
    }


def _add_fast_form(tokenizer: Any, config: Any, folder: Path) -> None:
    """tokenizer.json where the dense model had none, so that no reader needs the package that made it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or (folder / FAST).exists():
        return
    backend.save(str(folder / FAST))
    if not _loads_as(tokenizer, config, folder):
        (folder / FAST).unlink()


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file that need not exist yet; None takes a key out."""
    edited = {key: value for key, value in (_read(path) | values).items() if value is not None or key not in values}
    path.write_text(json.dumps(edited, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
