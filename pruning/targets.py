"""What a runtime can serve, as limits on the plan.

    hf         every layer its own widths, loaded with the shipped Python: no restriction
    stock      one pair of widths for all layers, so that the family's own class loads it (``pruning/uniform.py``)
    vllm       KV groups and MLP widths of every layer multiples of the tensor-parallel size
    llama.cpp  rows of o_proj and down_proj in multiples of 32, the block of Q8_0 and Q4_0

No target leaves a layer without a KV group or without a channel: floors keep one of each.
"""

import math
from dataclasses import replace
from typing import NoReturn

from core.errors import PlanError, UsageError
from core.groups import ATTENTION, MLP, Architecture
from core.names import GGUF_PER_LAYER, HF, LLAMA_CPP, STOCK, TARGETS, VLLM
from core.plan import PruningPlan
from pruning.limits import Limits
from pruning.planning import wording

GGUF_BLOCK, K_QUANT_BLOCK = 32, 256  # weights that share a scale: a row is a whole number of them
HEADS_FROM_HIDDEN = ("qwen2",)  # vLLM's class for these computed head_dim itself, read up to 0.11
WIDE, WIDE_ROUND_TO = 1024, 64


def default_round_to(architecture: Architecture) -> int:
    """What ``--round_to`` is where the user names none: 64 for models with 1024 channels or more in a layer, else 1."""
    return WIDE_ROUND_TO if max(shape.intermediate_size for shape in architecture.layers) >= WIDE else 1


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
        return _in_multiples(limits, _kv_groups_of_a_block(architecture, GGUF_BLOCK), GGUF_BLOCK)
    if target in (STOCK, VLLM):
        _check_tensor_parallel(architecture, tensor_parallel)
        limits = _in_multiples(limits, tensor_parallel, tensor_parallel)
    return replace(limits, uniform=True, kv_widths=kv_widths) if target == STOCK else limits


def explain(target: str, architecture: Architecture, limits: Limits) -> list[str]:
    """One line a restriction. limits: as ``limits_for`` returned them; hf has none."""
    if target == HF:
        return []
    kv, channels = limits.kv_round_to, limits.round_to
    lines = [f"{target}: every layer keeps at least one KV group and one channel"]
    if target == STOCK:
        lines = ["stock: all layers get the same widths, so that the family's own class loads the model"]
        if limits.kv_widths and len(limits.kv_widths) < min(shape.num_kv_heads for shape in architecture.layers):
            lines.append(
                f"stock: KV groups per layer are one of {_list(limits.kv_widths)}, the only ones that class accepts"
            )
        if architecture.model_type in HEADS_FROM_HIDDEN:
            most = max(shape.num_kv_heads for shape in architecture.layers)
            lines.append(
                "stock: head_dim is written out, but some engines take hidden_size / heads for this family (vLLM's own "
                f"class does); for them --min_kv_heads {most} keeps all heads"
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
    pairs = [tuple(len(plan.kept(layer, kind)) for kind in (ATTENTION, MLP)) for layer in plan.remaining_layers]
    for layer, pair in zip(plan.remaining_layers, pairs, strict=True):
        for kind, multiple in ((ATTENTION, limits.kv_round_to), (MLP, limits.round_to)):
            if pair[kind] % multiple and pair[kind] != architecture.layers[layer].widths[kind]:
                _refuse(f"keeps {wording(pair[kind], kind)} in layer {layer}, not a multiple of {multiple}", target)
        if limits.uniform and pair != pairs[0]:
            first = plan.remaining_layers[0]
            _refuse(f"keeps {_pair(pairs[0])} in layer {first}, but {_pair(pair)} in layer {layer}", target)
    if limits.uniform and kv_widths and pairs[0][ATTENTION] not in kv_widths:
        _refuse(f"keeps {_pair(pairs[0])} per layer; KV groups can be {_list(kv_widths)}", target)


def _refuse(what: str, target: str) -> NoReturn:
    raise PlanError(f"--plan {what}, which --target {target} cannot serve: plan again with this target, or use hf")


def _pair(widths: tuple[int, ...]) -> str:
    return f"{wording(widths[ATTENTION], ATTENTION)} and {wording(widths[MLP], MLP)}"


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(str(number) for number in sorted(numbers))


def _in_multiples(limits: Limits, kv_groups: int, channels: int) -> Limits:
    return replace(
        limits,
        kv_round_to=math.lcm(limits.kv_round_to, kv_groups),
        round_to=math.lcm(limits.round_to, channels),
    )


def _kv_groups_of_a_block(architecture: Architecture, block: int) -> int:
    """The least n for which n KV groups, n·(H/K)·D columns of o_proj, are a whole number of blocks in every layer."""
    columns = {shape.num_heads // shape.num_kv_heads * shape.head_dim for shape in architecture.layers}
    return math.lcm(*(block // math.gcd(block, column) for column in columns))


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
    widths = [(width, kind) for shape in architecture.layers for kind, width in enumerate(shape.widths)]
    uneven = [wording(width, kind) for width, kind in widths if width % n]
    if uneven:
        common = math.gcd(*(width for width, _ in widths))
        possible = _list(tuple(d for d in range(1, common + 1) if common % d == 0))
        raise UsageError(
            f"--tensor_parallel {n} does not divide the {uneven[0]} of a layer; possible values: {possible}"
        )
