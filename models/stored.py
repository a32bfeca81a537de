"""What a saved folder says of itself, read without loading weights: every layer's widths and every tensor's shape."""

import json
from pathlib import Path
from typing import Any

from core.errors import ModelError
from core.families import IN, Family, rows_per_group
from core.groups import LayerShape
from models.narrow import is_pruned_type
from models.tensors import read_header, tied_names, weight_files

WIDTHS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(folder: Path) -> Shapes:
    """Tensor name -> shape over all weight files, from their headers; ModelError where those are broken."""
    shapes: Shapes = {}
    for path in weight_files(folder):
        header, _ = read_header(path)
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items()}
    return shapes


def layer_shapes(config: dict[str, Any]) -> list[LayerShape]:
    """Every layer's widths as a raw config.json gives them (the parameter counts are 0): ``per_layer_config`` of our
    own folders, one set of widths for all layers in those of a family's own class.

    Raises ModelError (one line: layer, value, bound) for a missing or surplus layer, a width that is no positive
    whole number, and query heads that are no multiple of the KV heads.
    """
    layers, count, head_dim = (config.get(key) for key in ("per_layer_config", "num_hidden_layers", "head_dim"))
    own = is_pruned_type(str(config.get("model_type")))
    if own and not isinstance(layers, dict):
        raise ModelError(f"per_layer_config is {_short(layers)}, not an object of one entry a layer")
    for name, value in (("num_hidden_layers", count), ("head_dim", head_dim)):
        if not _is_width(value):
            raise ModelError(f"{name} is {_short(value)}, not a whole number of at least 1")
    assert isinstance(count, int)
    assert isinstance(head_dim, int)
    if not own:
        return [_layer_shape(str(layer), config, head_dim) for layer in range(count)]
    assert isinstance(layers, dict)
    expected = [str(layer) for layer in range(count)]
    missing, surplus = sorted(set(expected) - set(layers), key=int), sorted(set(layers) - set(expected))
    if missing:
        raise ModelError(f"per_layer_config has no layer {missing[0]}, and num_hidden_layers is {count}")
    if surplus:
        raise ModelError(f"per_layer_config names layer {surplus[0]}, and the last of {count} layers is {count - 1}")
    return [_layer_shape(layer, layers[layer], head_dim) for layer in expected]


def _layer_shape(layer: str, widths: Any, head_dim: int) -> LayerShape:
    if not isinstance(widths, dict):
        raise ModelError(f"per_layer_config of layer {layer} is {_short(widths)}, not an object of widths")
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
                lines.append(f"{name} is {_by(found)} where the widths of layer {index} ask for {width} {axis}")
    return lines


def check_widths(folder: Path, family: Family) -> None:
    """Raise ModelError (one line) when the config.json of a pruned folder cannot be that of its tensors."""
    try:
        wrong = misfits(
            layer_shapes(json.loads((folder / "config.json").read_text("utf-8"))), family, tensor_shapes(folder)
        )
    except ModelError as error:
        raise ModelError(f"{folder}: {error}; restore the config.json that was saved with the weights") from error
    if wrong:
        raise ModelError(f"{folder}: {_first_of(wrong)}; restore the config.json that was saved with the weights")


def check_tensors(folder: Path, empty: Any, *, strict: bool) -> None:
    """Raise ModelError when a stored tensor has another shape than in ``empty``, the model config.json describes.

    strict: also when one is missing (tied weights are stored once) or left over, so that loading would make weights
    up or lose them. Not for other people's folders, whose names from_pretrained may know to translate.
    """
    found, groups = tensor_shapes(folder), tied_names(empty)
    wrong = []
    for names in groups:
        needed = tuple(empty.get_parameter_or_buffer(names[0]).shape)
        here = [name for name in names if name in found]
        wrong += [
            f"{name} is {_by(found[name])} where config.json asks for {_by(needed)}"
            for name in here
            if found[name] != needed
        ]
        if strict and not here:
            wrong.append(f"{names[0]} is missing")
    if strict:
        known = {name for names in groups for name in names}
        wrong += [f"{name} is left over" for name in found if name not in known]
    if wrong:
        raise ModelError(f"{folder}: {_first_of(wrong)}; its weights and its config.json do not belong together")


def _first_of(lines: list[str]) -> str:
    return lines[0] + (f" (and {len(lines) - 1} more like it)" if len(lines) > 1 else "")


def _is_width(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
