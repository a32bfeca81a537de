"""Load a checkpoint's tokenizer, and refuse one that cannot be used with its model."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import transformers

from core.errors import ModelError, reason_of
from core.hub import offline_if_unreachable

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them holds the vocabulary
JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "added_tokens.json", "special_tokens_map.json")
SENTENCEPIECE = ("sentencepiece", "google.protobuf")  # modules that turn a tokenizer.model into a fast tokenizer


def load_tokenizer(path: str, config: Any, trust_remote_code: bool) -> Any:
    """The tokenizer of a folder or hub id. ModelError (one line) where there is none, or none that makes tokens."""
    try:
        with offline_if_unreachable():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                path, config=config, trust_remote_code=trust_remote_code
            )
        usable = len(tokenizer("a b")["input_ids"]) > 0
    except Exception as error:  # broken files raise whatever their readers do
        raise ModelError(f"cannot load a tokenizer from {path}: {_reason(path, error)}") from error
    if not usable:
        raise ModelError(f"the tokenizer of {path} turns text into nothing; copy its tokenizer files into the folder")
    return tokenizer


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, ValueError) and "trust_remote_code" in str(error):
        return "it brings Python of its own; read that, then add --trust_remote_code to run it"
    folder = Path(path)
    held = [file for file in FILES if (folder / file).is_file()]
    if folder.is_dir() and not held:
        return f"it has none of {', '.join(FILES)}; copy its tokenizer files into the folder"
    lacking = [name for name in SENTENCEPIECE if not _is_installed(name)]
    if held == ["tokenizer.model"] and lacking:
        return "its tokenizer.model is read by packages that are not installed: pip install sentencepiece protobuf"
    if held == ["tokenizer.model"] and not _is_sentencepiece(folder / "tokenizer.model"):
        return "its tokenizer.model is not a complete SentencePiece model; download it again"
    broken = next((name for name in JSON_FILES if _is_broken_json(folder / name)), None)
    if broken is not None:
        return f"its {broken} is not complete JSON; download it again"
    return f"{reason_of(error)}; copy its tokenizer files into the folder"


def _is_sentencepiece(file: Path) -> bool:
    from sentencepiece import SentencePieceProcessor

    try:
        return bool(SentencePieceProcessor().Load(str(file)))
    except (OSError, RuntimeError):
        return False


def _is_broken_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError):
        return True
    return False


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def check_token_ids(name: str, tokenizer: Any, embeddings: int) -> None:
    """Raise ModelError when a token that stands in every text or batch has no row among ``embeddings``.

    Looked at are those the tokenizer puts around a text, and its BOS, EOS and padding tokens; ids count from 0.
    """
    named = {f"its {kind}_token": getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")}
    plain = tokenizer("a b", add_special_tokens=False)["input_ids"]
    around = [("a token that it adds to every text", token) for token in {*tokenizer("a b")["input_ids"]} - {*plain}]
    for what, token in (*named.items(), *around):
        if isinstance(token, int) and token >= embeddings:
            raise ModelError(
                f"{name}: the tokenizer gives {what} ({tokenizer.convert_ids_to_tokens(token)}) the id {token}, and "
                f"the embedding has {embeddings} rows; give the tokenizer that the model was trained with, or add rows "
                f"(model.resize_token_embeddings({token + 1}), then save_pretrained)"
            )
