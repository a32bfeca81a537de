"""What a runtime can serve, as limits on the plan.

    hf         every layer its own widths, loaded with the shipped Python: no restriction
    stock      one pair of widths for all layers, so that the family's own class loads it (``pruning/uniform.py``)
    vllm       KV groups and MLP widths of every layer multiples of the tensor-parallel size
    llama.cpp  rows of o_proj and down_proj in multiples of 32, the block of Q8_0 and Q4_0

No target leaves a layer without a KV group or without a channel: floors keep one of each.
"""

import math
from dataclasses import replace
from typing import Any, NoReturn

from core.errors import PlanError, UsageError
from core.groups import ATTENTION, MLP, Architecture, Block
from core.kinds import TABLE
from core.names import GGUF_PER_LAYER, HF, LLAMA_CPP, STOCK, TARGETS, VLLM
from core.plan import PruningPlan
from pruning.limits import Limits

GGUF_BLOCK, K_QUANT_BLOCK = 32, 256  # weights that share a scale: a row is a whole number of them
HEADS_FROM_HIDDEN = ("qwen2",)  # vLLM's class for these computed head_dim itself, read up to 0.11
WIDE, WIDE_ROUND_TO = 1024, 64


def default_round_to(architecture: Architecture) -> int:
    """What ``--round_to`` is where the user names none: 64 for models with 1024 channels or more in a layer, else 1."""
    widest = max((block.width for block in architecture.blocks if block.about.step == "round_to"), default=0)
    return WIDE_ROUND_TO if widest >= WIDE else 1


def limits_for(
    target: str,
    architecture: Architecture,
    limits: Limits,
    *,
    tensor_parallel: int = 1,
    kv_widths: tuple[int, ...] = (),
) -> Limits:
    """``limits``, narrowed to the shapes that ``target`` serves; floors and rounding of the user stay in force.

    tensor_parallel: N, for stock and vllm. kv_widths: KV groups per layer that the family's class accepts
    (``models.stock.possible_kv_widths``), for stock; empty allows any. What cannot work: UsageError.
    """
    if target not in TARGETS:
        raise UsageError(f"--target {target}: needs one of {', '.join(TARGETS)}")
    if tensor_parallel != 1 and target not in (STOCK, VLLM):
        raise UsageError(
            f"--tensor_parallel {tensor_parallel} has an effect only with --target vllm or stock, not with {target}"
        )
    if target == LLAMA_CPP:
        _check_gguf_family(architecture)
        return _in_multiples(limits, _groups_that_fill(architecture, GGUF_BLOCK))
    if target in (STOCK, VLLM):
        _check_tensor_parallel(architecture, tensor_parallel)
        limits = _in_multiples(limits, dict.fromkeys(architecture.kinds, tensor_parallel))
    return replace(limits, uniform=True, kv_widths=kv_widths) if target == STOCK else limits


def explain(target: str, architecture: Architecture, limits: Limits) -> list[str]:
    """One line a restriction. limits: as ``limits_for`` returned them; hf has none."""
    if target == HF:
        return []
    kv, channels = limits.step(ATTENTION), limits.step(MLP)
    least = _and([f"one {TABLE[kind].noun}" for kind in architecture.kinds])
    lines = [f"{target}: every layer keeps at least {least}"]
    if target == STOCK:
        lines = ["stock: all layers get the same widths, so that the family's own class loads the model"]
        heads = [block.width for block in architecture.blocks if block.kind == ATTENTION]
        if limits.kv_widths and len(limits.kv_widths) < min(heads):
            lines.append(
                f"stock: KV groups per layer are one of {_list(limits.kv_widths)}, the only ones that class accepts"
            )
        if architecture.model_type in HEADS_FROM_HIDDEN:
            lines.append(
                "stock: head_dim is written out, but some engines take hidden_size / heads for this family (vLLM's own "
                f"class does); for them --min_kv_heads {max(heads)} keeps all heads"
            )
    if target in (STOCK, VLLM) and kv > 1:
        lines.append(f"{target}: KV groups and MLP widths are multiples of {kv}, as --tensor_parallel splits them")
    if target == LLAMA_CPP:
        lines.append(f"llama.cpp: MLP widths are multiples of {channels}, so rows fill the blocks of 32 of Q8_0, Q4_0")
        if kv > 1:
            lines.append(f"llama.cpp: KV groups are multiples of {kv}, so rows of o_proj fill blocks of 32 too")
        if channels % K_QUANT_BLOCK:
            lines.append("llama.cpp: K-quants (Q4_K, Q6_K) have blocks of 256; for them --round_to 256 is recommended")
    return lines


def check_plan(target: str, plan: PruningPlan, *, tensor_parallel: int = 1, kv_widths: tuple[int, ...] = ()) -> None:
    """Raise PlanError where a plan made elsewhere (``--plan``) has a shape that the target does not serve.

    Widths that the plan leaves whole pass, but for stock, which needs all remaining layers equal.
    """
    architecture = plan.architecture
    limits = limits_for(target, architecture, Limits(), tensor_parallel=tensor_parallel, kv_widths=kv_widths)
    for layer in plan.remaining_layers:
        for block, after in _blocks(plan, layer):
            multiple = limits.step(block.kind)
            if after.width % multiple and after.width != block.width:
                kept = after.about.counted(after.width)
                _refuse(f"keeps {kept} in layer {layer}, not a multiple of {multiple}", target)
        if limits.uniform:
            _check_equal(target, plan, layer)
    for block in plan.pruned_architecture.blocks:
        possible = limits.widths(block.kind)
        if limits.uniform and possible and block.width not in possible:
            widths = _widths(plan, plan.remaining_layers[0])
            _refuse(f"keeps {widths} per layer; {block.about.noun}s can be {_list(possible)}", target)


def _check_equal(target: str, plan: PruningPlan, layer: int) -> None:
    """Each block of a layer has the width that the first remaining block of its kind has."""
    for block, after in _blocks(plan, layer):
        first = next(other for other in plan.remaining_layers if plan.architecture.layers[other].has(block.kind))
        if after.width != len(plan.kept(first, block.kind)):
            kept = _widths(plan, first)
            _refuse(f"keeps {kept} in layer {first}, but {_widths(plan, layer)} in layer {layer}", target)


def _blocks(plan: PruningPlan, layer: int) -> list[tuple[Block, Block]]:
    """The blocks of a layer that stays, before and after."""
    after = plan.pruned_shape(layer)
    assert after is not None
    return list(zip(plan.architecture.layers[layer].blocks, after.blocks, strict=True))


def _refuse(what: str, target: str) -> NoReturn:
    raise PlanError(f"--plan {what}, which --target {target} cannot serve: plan again with this target, or use hf")


def _widths(plan: PruningPlan, layer: int) -> str:
    return _and([after.about.counted(after.width) for _, after in _blocks(plan, layer)])


def _and(parts: list[str]) -> str:
    """``a and b``, ``a, b and c``."""
    return " and ".join([part for part in (", ".join(parts[:-1]), parts[-1]) if part])


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(str(number) for number in sorted(numbers))


def _in_multiples(limits: Limits, multiples: dict[int, int]) -> Limits:
    """The limits with the steps of these kinds, groups by kind, raised to multiples of what is asked."""
    for kind, groups in multiples.items():
        if (name := TABLE[kind].step) is not None:
            change: dict[str, Any] = {name: math.lcm(limits.step(kind), groups)}
            limits = replace(limits, **change)
    return limits


def _groups_that_fill(architecture: Architecture, size: int) -> dict[int, int]:
    """By kind, the least n for which the columns of n groups in the writing projection, n·(H/K)·D of o_proj and n of
    down_proj, are a whole number of blocks of ``size`` in every layer."""
    least = dict.fromkeys(architecture.kinds, 1)
    for block in architecture.blocks:
        least[block.kind] = math.lcm(least[block.kind], size // math.gcd(size, block.columns_per_group))
    return least


def _check_gguf_family(architecture: Architecture) -> None:
    if architecture.model_type not in GGUF_PER_LAYER:
        raise UsageError(
            f"--target llama.cpp serves widths per layer for {', '.join(GGUF_PER_LAYER)} only, not for "
            f"{architecture.model_type}; use --target stock, as equal widths need no such architecture"
        )


def _check_tensor_parallel(architecture: Architecture, n: int) -> None:
    """The dense widths must split evenly, as a block that keeps all its groups is served as it is."""
    if n < 1:
        raise UsageError(f"--tensor_parallel {n}: needs a number of at least 1")
    uneven = [block.about.counted(block.width) for block in architecture.blocks if block.width % n]
    if uneven:
        common = math.gcd(*(block.width for block in architecture.blocks))
        possible = _list(tuple(d for d in range(1, common + 1) if common % d == 0))
        raise UsageError(
            f"--tensor_parallel {n} does not divide the {uneven[0]} of a layer; possible values: {possible}"
        )
