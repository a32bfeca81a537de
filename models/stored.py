"""What a saved folder says of itself, read without loading weights: every layer's widths and every tensor's shape."""

import json
from pathlib import Path
from typing import Any

from core.errors import ModelError
from core.families import IN, Family, rows_per_group
from core.groups import LayerShape
from models.family_table import family_of
from models.narrow import is_pruned_type
from models.places import Headers, by, first_of, stored_headers
from models.shipped import shipped_classes

WIDTHS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(folder: Path) -> Shapes:
    """Tensor name -> shape over all weight files, from their headers; ModelError where those are broken."""
    return {name: tuple(entry["shape"]) for name, entry in stored_headers(folder).items()}


def layer_shapes(config: dict[str, Any]) -> list[LayerShape]:
    """Every layer's widths as a raw config.json gives them (the parameter counts are 0): in our own folders its entry
    in ``per_layer_config``, and the global width where that has none.

    Libraries that save such a folder again keep only what differs from the global widths, down to no entry at all,
    and may number layers as ``00``, ``01``. Raises ModelError (one line: layer, value, bound) for a surplus layer, a
    width that is no positive whole number, and query heads that are no multiple of the KV heads.
    """
    own = is_pruned_type(str(config.get("model_type")))
    config = {key: value for key, value in config.items() if value is not None}
    config = _defaults(config) | config if own else config
    count, head_dim = (config.get(key) for key in ("num_hidden_layers", "head_dim"))
    for name, value in (("num_hidden_layers", count), ("head_dim", head_dim)):
        if not _is_width(value):
            raise ModelError(f"{name} is {_short(value)}, not a whole number of at least 1")
    assert isinstance(count, int)
    assert isinstance(head_dim, int)
    entries = _entries(config.get("per_layer_config"), count) if own else {}
    whole = {name: config[name] for name in WIDTHS if name in config}
    return [_layer_shape(layer, entries.get(layer, {}), whole, head_dim) for layer in range(count)]


def _defaults(config: dict[str, Any]) -> dict[str, Any]:
    """What the family's configuration makes of values that a library left out because they are the default."""
    values = {key: value for key, value in config.items() if key not in ("model_type", "per_layer_config")}
    try:
        built = shipped_classes(family_of(config["model_type"])).config(**values)
    except Exception:  # values that it refuses are told apart by name in what follows
        return {}
    return {name: getattr(built, name) for name in (*WIDTHS, "num_hidden_layers", "head_dim")}


def _entries(layers: Any, count: int) -> dict[int, Any]:
    if not isinstance(layers, dict | None):
        raise ModelError(f"per_layer_config is {_short(layers)}, not an object with one entry per layer")
    entries = {}
    for key, entry in (layers or {}).items():
        layer = int(key) if key.isdecimal() else -1
        if not 0 <= layer < count:
            raise ModelError(f"per_layer_config names layer {key}, and the last of {count} layers is {count - 1}")
        entries[layer] = entry
    return entries


def _layer_shape(layer: int, entry: Any, whole: dict[str, Any], head_dim: int) -> LayerShape:
    if not isinstance(entry, dict):
        raise ModelError(f"per_layer_config of layer {layer} is {_short(entry)}, not an object of widths")
    widths = whole | entry
    for name in WIDTHS:
        if not _is_width(widths.get(name)):
            found = f"is {_short(widths[name])}" if name in widths else "is missing"
            raise ModelError(f"{name} of layer {layer} {found}; a whole number of at least 1 is needed")
    heads, kv_heads, channels = (widths[name] for name in WIDTHS)
    if heads % kv_heads:
        raise ModelError(f"layer {layer} has {heads} query heads, which is no multiple of its {kv_heads} KV heads")
    return LayerShape(heads, kv_heads, head_dim, channels, 0, 0)


def misfits(layers: list[LayerShape], family: Family, shapes: Shapes) -> list[str]:
    """One line for each tensor of the members whose shape is not what its layer's widths ask for."""
    lines = []
    for index, layer in enumerate(layers):
        for member in family.members:
            width = sum(layer.widths[member.kind] * rows_per_group(part, layer) for part in member.parts)
            name = f"{family.layers}.{index}.{member.path}.weight"
            found = shapes.get(name)
            if found is None:
                lines.append(f"{name} is missing")
            elif len(found) != 2 or found[member.axis] != width:
                axis = "columns" if member.axis == IN else "rows"
                lines.append(f"{name} is {by(found)} where the widths of layer {index} ask for {width} {axis}")
    return lines


def check_widths(name: str, config: dict[str, Any], headers: Headers) -> None:
    """Raise ModelError (one line) when the config.json of a pruned folder cannot be that of its tensors.

    name: of the folder or hub id. config: config.json as written. headers: of the stored tensors.
    """
    family = family_of(config["model_type"])
    base = family.layers.split(".")[0]
    shapes = {stored: tuple(entry["shape"]) for stored, entry in headers.items()}
    shapes |= {f"{base}.{stored}": shape for stored, shape in shapes.items() if not stored.startswith(f"{base}.")}
    try:
        wrong = misfits(layer_shapes(config), family, shapes)
    except ModelError as error:
        raise ModelError(f"{name}: {error}; restore the config.json that was saved with the weights") from error
    if wrong:
        raise ModelError(f"{name}: {first_of(wrong)}; restore the config.json that was saved with the weights")


def _is_width(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
