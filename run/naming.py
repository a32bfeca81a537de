"""The folder of a run that names none: runs that differ go to different folders, and the name says in what.

    results/<model>/<criterion>_<ratio>[_<what differs from the defaults>]_<text>[_<six digits>]

The digits stand for what has no short name, or for a path whose last part alone is shown. Where a run computes, and
what it does beside the result (cache, proof), is no part of the name.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.sources import Source, in_equal_shares, sources_of

# Option -> what stands before its value, in this order. "" shows the value alone, and a switch shows the word alone.
WORDS = {
    "norm_method": "",
    "clip": "clip",
    "temperature": "T",
    "tau": "tau",
    "gradient_reduction": "",
    "freeze_first_n_layers": "first",
    "freeze_last_n_layers": "last",
    "max_block_ratio": "cap",
    "round_to": "round",
    "remedy": "remedy-",
    "protect": "protect-",
    "allocate": "",
    "rounds": "rounds",
    "recover": "recover-",
    "recover_tokens": "tokens",
    "recover_lora": "lora",
    "num_samples": "n",
    "seq_len": "len",
    "seed": "seed",
    "target": "",
    "export": "",
    "dry_run": "dry",
}
SHOWN = {
    *("base_model", "plan", "dataset", "importance_method", "pruning_ratio", "ratio_of"),
    *("enable_grad_norm", "enable_grad_clip", "clip_percentile_low", "clip_percentile_high"),
}
NO_MATTER = {
    *("output", "overwrite", "cache_dir", "verify", "device", "gpu_memory", "engine", "scratch", "low_memory"),
    *("batch_size", "report_to", "given", "argv"),
}
# A value says nothing where what it belongs to is off.
ACTS_WITH = {"norm_method": "enable_grad_norm", "clip": "enable_grad_clip", "tau": "temperature"}
LONGEST = 120  # bytes; file systems allow 255 for a name


def default_folder(values: Mapping[str, Any], defaults: Mapping[str, Any], datasets: tuple[str, ...]) -> Path:
    """values: every option as typed, by name. defaults: what stands for those that were not given.

    datasets: names that are no paths.
    """
    sources = sources_of(values["dataset"])
    model, text = _name(values["base_model"]), _texts(sources)
    paths = ["" if source.name in datasets else _hidden(source.name) for source in sources]
    hidden = [_hidden(values["base_model"]), *paths]
    if values.get("plan") is not None:
        parts, unnamed = _of_a_replay(Path(values["plan"])), {"plan": str(values["plan"])}
    else:
        parts, unnamed = [values["importance_method"], _ratio(values)], {}
    parts += [*_differences(values, defaults), text]
    unnamed |= {name: str(value) for name, value in values.items() if _is_unnamed(name, value, defaults)}
    if any(hidden) or unnamed:
        parts.append(_digits([hidden, unnamed]))
    return Path("results") / _short(model) / _short("_".join(parts))


def _ratio(values: Mapping[str, Any]) -> str:
    return f"{values['pruning_ratio']:g}" + ("-of-prunable" if values["ratio_of"] == "prunable" else "")


def _of_a_replay(plan: Path) -> list[str]:
    """After the run that made the plan, where it still lies in that run's folder."""
    return ["replayed", _safe(plan.parent.parent.name if plan.parent.name == "analysis" else "") or _safe(plan.stem)]


def _differences(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    parts = []
    for name, word in WORDS.items():
        acts = values[ACTS_WITH[name]] if name in ACTS_WITH else values[name] != defaults[name]
        if acts:
            parts.append(word + _value(name, values))
    return parts


def _value(name: str, values: Mapping[str, Any]) -> str:
    if name == "clip":
        return f"{values['clip_percentile_low']:g}-{values['clip_percentile_high']:g}"
    value = values[name]
    if isinstance(value, bool):
        return ""
    if isinstance(value, tuple):
        return "+".join(value)
    return _safe(f"{value:g}" if isinstance(value, float) else str(value))


def _is_unnamed(name: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    return name not in {*WORDS, *SHOWN, *NO_MATTER} and value != defaults.get(name)


def _name(text: str) -> str:
    """Of a path its last part; of ``owner/model`` and other paths of two parts both."""
    parts = _parts(text)
    return "--".join(_safe(part) for part in parts[-2:]) if len(parts) == 2 else _safe(parts[-1])


def _texts(sources: tuple[Source, ...]) -> str:
    """``pydoc``, ``pydoc+self``, or ``pydoc0.7+self0.3`` where the shares differ."""
    equal = in_equal_shares(sources)
    return "+".join(_name(source.name) + ("" if equal else f"{source.share:g}") for source in sources)


def _hidden(text: str) -> str:
    """What the name does not show of a path: all of it where a part is left out or written otherwise."""
    parts = _parts(text)
    return "" if len(parts) <= 2 and all(part == _safe(part) for part in parts) else text


def _parts(text: str) -> tuple[str, ...]:
    path = Path(text)
    return (path if path.name not in ("", "..") else path.resolve()).parts or (text,)


def _safe(text: str) -> str:
    """No separators, spaces or control characters, and no name that hides itself."""
    return re.sub(r"[^\w.+=-]+", "-", text).lstrip(".-") or "x"


def _short(name: str) -> str:
    if len(name.encode()) <= LONGEST:
        return name
    return name.encode()[: LONGEST - 7].decode(errors="ignore") + "_" + _digits(name)


def _digits(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
