"""Surgery: carry out a finished plan. It holds no opinions and is the only permanent change to a model."""

from typing import Any

import torch
from torch import nn

from core.decoder import Decoder
from core.families import Family, Member
from core.plan import PruningPlan
from core.progress import tqdm


def slice_member(
    member: Member, weight: torch.Tensor, bias: torch.Tensor | None, plan: PruningPlan, layer: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cut one module's weight (out, in) and bias (out,) to the groups the plan keeps in ``layer``.

    Returns new contiguous tensors of the same dtype and device; a member that loses nothing is returned as it is.
    """
    return slice_tensor(member, weight, plan, layer), None if bias is None else slice_tensor(member, bias, plan, layer)


def slice_tensor(member: Member, tensor: torch.Tensor, plan: PruningPlan, layer: int) -> torch.Tensor:
    """The same for one of the two. A bias (out,) has no input axis: a member cut along it keeps its bias."""
    if plan.keeps_whole(layer, member.kind) or member.axis >= tensor.ndim:
        return tensor
    rows = torch.from_numpy(plan.columns(layer, member)).to(tensor.device)
    return tensor.index_select(member.axis, rows)


@torch.no_grad()
def operate(model: Any, narrow: Any, family: Family, plan: PruningPlan) -> Any:
    """Move what the plan keeps from ``model`` into ``narrow`` (an empty model of the plan's widths); return it.

    Tensors that lose nothing are moved, not copied, and each sliced original is released at once, so the peak is
    one model and one tensor. ``model`` is left without weights and must not be used again.
    """
    members = {member.path: member for member in family.members}
    old_layers, new_layers = Decoder(model, family).layers, Decoder(narrow, family).layers
    for new_index, old_index in enumerate(tqdm(plan.remaining_layers, desc="surgery", unit="layer", leave=False)):
        old, new = old_layers[old_index], new_layers[new_index]
        for path, module in new.named_modules():
            source = old.get_submodule(path)
            _move_tensors(source, module, members.get(path), plan, old_index)
    body_path = family.layers.rpartition(".")[0]
    _share_children(model, narrow, skip=body_path)
    _share_children(model.get_submodule(body_path), narrow.get_submodule(body_path), skip=family.layers.split(".")[-1])
    for module in narrow.modules():
        if getattr(module, "config", None) is model.config:
            module.config = narrow.config
    narrow.generation_config = model.generation_config
    narrow.train(model.training)
    return narrow


def _move_tensors(source: nn.Module, target: nn.Module, member: Member | None, plan: PruningPlan, layer: int) -> None:
    """Give ``target`` the tensors of ``source`` that it declares itself, cut where it is a member."""
    moved: dict[str, torch.Tensor | None] = dict(source.named_parameters(recurse=False))
    frozen = {name: tensor.requires_grad for name, tensor in source.named_parameters(recurse=False)}
    if member is not None:
        moved["weight"], moved["bias"] = slice_member(member, moved["weight"], moved.get("bias"), plan, layer)  # type: ignore[arg-type]
    for name in list(target._parameters):
        tensor = moved[name]
        target._parameters[name] = None if tensor is None else nn.Parameter(tensor, requires_grad=frozen[name])
        source._parameters[name] = None
    for name, buffer in source._buffers.items():
        target._buffers[name] = buffer


def _share_children(source: nn.Module, target: nn.Module, skip: str) -> None:
    """What is outside the decoder layers (embeddings, final norm, rotary tables, head) is untouched: hand it over."""
    for name, child in source.named_children():
        if name != skip:
            setattr(target, name, child)
