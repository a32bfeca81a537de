"""Does every stored tensor have a place in the model, and every place a tensor? The loader's own word, from headers.

``from_pretrained`` gets the stored names and shapes as tensors without bytes (meta device) and says what it would
make up, drop or refuse. So whatever a release translates (names without the base model's prefix) or leaves out on
purpose (rotary buffers that old releases stored) is judged as loading will judge it, before a weight is read.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from core.errors import ModelError, reason_of
from core.families import Family
from models.tensors import DTYPES, read_header, tied_names, weight_files

FLOATS = ("F64", "F32", "F16", "BF16")
Headers = Mapping[str, Mapping[str, Any]]  # name -> dtype and shape as the files name them


def stored_headers(folder: Path) -> dict[str, dict[str, Any]]:
    """Tensor name -> its entry in the header of its file, over all weight files. ModelError where those are broken."""
    return {name: entry for path in weight_files(folder) for name, entry in read_header(path)[0].items()}


def check_places(name: str, headers: Headers, empty: Any, family: Family) -> None:
    """Raise ModelError (one line) when loading into ``empty`` (on the meta device) would lose or make up weights.

    In turn: quantised values, tensors that are missing, of another shape than config.json asks for, or left over.
    """
    verdict = _ask_the_loader(name, headers, empty)
    left = [stored for stored in headers if stored in verdict["unexpected_keys"]]
    _refuse_quantised(name, headers, {*left, *placed(headers, empty)})
    missing = [known for known in empty.state_dict() if known in verdict["missing_keys"]]
    shapes = sorted(verdict["mismatched_keys"], key=lambda key: str(key[0]))
    wrong = [f"{known} is missing" for known in missing]
    wrong += [f"{known} is {by(found)} where config.json asks for {by(needed)}" for known, found, needed in shapes]
    over = [f"{stored} is left over" for stored in left]
    if wrong:
        told = "; ".join(first_of(lines) for lines in (wrong, over) if lines)
        raise ModelError(f"{name}: {told}; {_not_together(missing, left)}")
    if left:
        raise ModelError(f"{name}: {first_of(over)}; {_no_place(left, empty, family)}")


def notes_on_class(name: str, empty: Any) -> tuple[str, ...]:
    """A note where config.json names another class than the causal LM that its weights fit."""
    own, named = type(empty).__name__, getattr(empty.config, "architectures", None) or []
    if not named or own in named:
        return ()
    return (f"{name}: config.json says {named[0]}; it is pruned and saved as {own}",)


def _ask_the_loader(name: str, headers: Headers, empty: Any) -> dict[str, Any]:
    bare = {
        stored: torch.empty(tuple(entry["shape"]), dtype=DTYPES.get(entry["dtype"], torch.float32), device="meta")
        for stored, entry in headers.items()
    }
    try:
        with _quiet():
            _, verdict = type(empty).from_pretrained(
                None,
                config=empty.config,
                state_dict=bare,
                device_map="meta",
                ignore_mismatched_sizes=True,  # reported, not raised
                output_loading_info=True,
            )
    except Exception as error:  # shapes that no layer can be filled from
        raise ModelError(f"{name}: its weights do not fit its config.json: {reason_of(error)}") from error
    return dict(verdict)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the loader's report and progress: what it finds is told in a line of ours."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def placed(headers: Headers, empty: Any) -> list[str]:
    """The stored names that are names of the model, with or without the prefix of its base model."""
    known = {name for names in tied_names(empty) for name in names}
    prefix = f"{empty.base_model_prefix}."
    return [name for name in headers if {name, prefix + name, name.removeprefix(prefix)} & known]


def _refuse_quantised(name: str, headers: Headers, names: set[str]) -> None:
    packed = [
        f"{stored} is stored as {entry['dtype']}"
        for stored, entry in headers.items()
        if stored in names and entry["dtype"] not in FLOATS
    ]
    if packed:
        raise ModelError(
            f"{name} is quantised: {first_of(packed)}; prune the unquantised checkpoint, then quantise the result"
        )


def _not_together(missing: list[str], left: list[str]) -> str:
    """What to do where tensors are missing or of another shape, as far as names tell."""
    if missing == ["lm_head.weight"] and not left:
        return "give the weights with their head, or set tie_word_embeddings to true in config.json if it has none"
    known = next((name for name in missing if any(stored.endswith(f".{name}") for stored in left)), None)
    if known is not None:
        prefix = next(stored for stored in left if stored.endswith(f".{known}")).removesuffix(known)
        return f"take the prefix {prefix} off the names in its weights (a wrapper was saved with them)"
    return "its weights and its config.json do not belong together; give both as they were saved together"


def _no_place(left: list[str], empty: Any, family: Family) -> str:
    """Why, as far as names tell, and what to do."""
    config, own = empty.config, type(empty).__name__
    layers = [int(found[1]) for name in left if (found := re.search(r"\blayers\.(\d+)\.", name))]
    if any(".lora_" in name or ".base_layer." in name for name in left):
        return "an adapter that was not merged; merge it (peft: merge_and_unload), then save_pretrained"
    if layers and max(layers) >= config.num_hidden_layers:
        return f"config.json names {config.num_hidden_layers} layers; restore the num_hidden_layers it was saved with"
    named = [name for name in getattr(config, "architectures", None) or () if name != own]
    kind = f"config.json says {named[0]}, and " if named else ""
    return (
        f"{kind}{own} has no place for it; give only the causal LM, or remove tensors that it computes the same without"
    )


def stored_dtype(name: str, headers: Headers, empty: Any, family: Family) -> tuple[torch.dtype, tuple[str, ...]]:
    """The dtype that most bytes of the prunable weights are stored in, float64 counting as float32; and notes.

    A checkpoint is saved in it, so that pruning never makes one larger: the files know, config.json may be wrong.
    """
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for stored in placed(headers, empty):
        entry = headers[stored]
        start, end = entry["data_offsets"]
        prunable = any(f".{member.path}." in stored for member in family.members)
        sizes[entry["dtype"]] += (end - start) * prunable
        counts[entry["dtype"]] += 1
    (most, _), *_ = sizes.most_common(1)
    dtype = torch.float32 if most == "F64" else DTYPES[most]
    notes = [
        f"{name}: {'1 tensor is' if count == 1 else f'{count} tensors are'} stored in {word(DTYPES[other])} and will "
        f"be {word(dtype)}, {'the widest dtype that is saved' if other == most else 'as most weights are'}"
        for other, count in counts.items()
        if DTYPES[other] != dtype
    ]
    said = getattr(empty.config, "dtype", None)
    if isinstance(said, torch.dtype) and said != dtype:
        notes.append(f"{name}: config.json says {word(said)}, the weights are stored in {word(dtype)}, which is used")
    return dtype, tuple(notes)


def word(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def first_of(lines: list[str]) -> str:
    """The first line, and how many more there are."""
    return lines[0] + (f" (and {len(lines) - 1} more like it)" if len(lines) > 1 else "")


def by(shape: tuple[int, ...]) -> str:
    """``24 x 64`` for (24, 64)."""
    return " x ".join(map(str, shape)) or "a single number"
