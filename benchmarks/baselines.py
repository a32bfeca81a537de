"""Published one-shot methods as arithmetic on arrays: what each keeps, and how it repairs what stays.

Written from the papers, in the alphabet of this project; nothing here runs a model, ``benchmarks/quality`` does. W is
the weight (out, in) of ``o_proj`` or ``down_proj``, X (tokens, in) its inputs, j an input feature; a group owns one
feature (an MLP channel) or H/K·D of them (a KV group).

    LLM-Pruner  arXiv:2305.11627   I_g = Σ_{w in g} |w · Σ_n ∂L_n/∂w|, one ratio in all layers but the first and last
    Wanda-sp    arXiv:2312.11983   I_g = Σ_{j in g} Σ_d |W_dj| · ‖X_j‖₂, one ratio in all layers
    FLAP        arXiv:2312.11983   Var(X_j) · ‖W_:j‖₂², z-score inside a block, ranked globally; removed means → bias
    ShortGPT    arXiv:2403.03853   layers of the least 1 − cos(stream before, stream after) leave whole
    OSSCAR      arXiv:2403.12983   choice inside each block by the layer's output error, least squares on the rest;
    SlimGPT     arXiv:2412.18110   both stand behind ``greedy_surgeon``: one group at a time, the rest refitted
"""

from fractions import Fraction

import numpy as np
import torch

from core.groups import ATTENTION, MLP, Architecture
from pruning.planning import Limits, plan_removal, requested_params

DAMPING = 0.01  # λ over the mean diagonal of X^T X
SKIPPED_FIRST, SKIPPED_LAST = Fraction(4, 32), Fraction(2, 32)  # LLM-Pruner prunes layers 4 to 29 of LLaMA-7B's 32


def ranked_keep(architecture: Architecture, order: np.ndarray, ratio: float) -> np.ndarray:
    """bool (G,): ``order`` int64 (G,), lowest first, walked until ``ratio`` of the prunable parameters is spent."""
    return plan_removal(architecture, order, ratio=ratio, ratio_of="prunable", limits=Limits()).keep


def uniform_keep(
    architecture: Architecture, importance: np.ndarray, ratio: float, frozen: tuple[int, ...] = ()
) -> np.ndarray:
    """bool (G,): the least important groups of every block leave, the same share of each layer that is not frozen.

    KV groups: the share of K, to the nearest whole number (a half: the smaller). Channels then spend the rest of the
    budget, the same number in each layer; what is left over goes one channel a layer, from the first layer on.
    """
    free = [index for index in range(architecture.num_layers) if index not in frozen]
    budget = requested_params(architecture, ratio, "prunable")
    share = Fraction(budget, sum(architecture.layers[index].prunable_params for index in free))
    removed = {}
    for index in free:
        kv_groups = architecture.layers[index].num_kv_heads
        removed[index, ATTENTION] = min(int(-((-2 * share * kv_groups + 1) // 2)), kv_groups - 1)
        budget -= removed[index, ATTENTION] * architecture.layers[index].kv_group_params
    shapes = [architecture.layers[index] for index in free]
    channels = Fraction(budget, sum(shape.intermediate_size * shape.channel_params for shape in shapes))
    for index in free:
        shape = architecture.layers[index]
        removed[index, MLP] = min(int(channels * shape.intermediate_size), shape.intermediate_size - 1)
        budget -= removed[index, MLP] * shape.channel_params
    for index in free:
        shape = architecture.layers[index]
        if shape.channel_params <= budget and removed[index, MLP] < shape.intermediate_size - 1:
            removed[index, MLP] += 1
            budget -= shape.channel_params
    return lowest_removed(architecture, importance, removed)


def lowest_removed(
    architecture: Architecture, importance: np.ndarray, removed: dict[tuple[int, int], int]
) -> np.ndarray:
    """bool (G,): without the ``removed[layer, kind]`` least important groups of each block; of equals the first go."""
    keep = np.ones(len(architecture.groups), dtype=bool)
    for (layer, kind), count in removed.items():
        rows = architecture.groups.rows(layer, kind)
        keep[rows.start + np.argsort(importance[rows], kind="stable")[:count]] = False
    return keep


def skipped_layers(num_layers: int) -> tuple[int, ...]:
    """LLM-Pruner's untouched layers, its shares of 32 layers scaled to L: at least one at either end."""
    first, last = (max(1, round(share * num_layers)) for share in (SKIPPED_FIRST, SKIPPED_LAST))
    return (*range(first), *range(num_layers - last, num_layers))


def fluctuation(variance: np.ndarray, weight: np.ndarray, groups: int, kind: int) -> np.ndarray:
    """FLAP's metric of a block's groups, float64 (groups,).

    variance: sample variance of each input feature, (in,). weight: (out, in). The metric Var(X_j)·‖W_:j‖₂², which the
    authors' program squares for attention, is standardised over the block's features (sample deviation), then averaged
    over those of a group.
    """
    metric = (variance * np.square(weight, dtype=np.float64).sum(0)) ** (2 if kind == ATTENTION else 1)
    spread = metric.std(ddof=1)
    standard = (metric - metric.mean()) / (spread if spread > 0 else 1.0)
    return np.asarray(standard.reshape(groups, -1).mean(1))


def compensating_bias(weight: torch.Tensor, mean: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
    """(out,): W_:gone · mean_gone, what the removed features gave on average. mean (in,); gone bool (in,)."""
    return weight[:, gone] @ mean[gone].to(weight.dtype)


def redundant_layers(architecture: Architecture, influence: np.ndarray, ratio: float) -> tuple[int, ...]:
    """ShortGPT: layers of the least block influence, as many as ``ratio`` of the prunable parameters pays for."""
    budget = requested_params(architecture, ratio, "prunable")
    chosen = []
    for layer in np.argsort(influence, kind="stable").tolist():
        budget -= architecture.layers[layer].prunable_params
        if budget < 0:
            break
        chosen.append(layer)
    return tuple(sorted(chosen))


def damped(gram: torch.Tensor) -> torch.Tensor:
    """X^T X + λI, float64 (in, in), λ = DAMPING times the mean diagonal; I alone where all inputs are 0."""
    strength = float(gram.diagonal().mean()) * DAMPING
    return gram + torch.eye(len(gram), dtype=gram.dtype) * (strength if strength > 0 else 1.0)


def least_squares(weight: torch.Tensor, gram: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """float64 (out, in), zero outside ``kept``: the weights that give W's outputs from the kept features alone.

    W_k ← (W X^T X_k + λ W_k)(X_k^T X_k + λI)^-1, which minimises ‖X W^T − X_k Ŵ^T‖² + λ‖Ŵ − W_k‖². kept: int64 (k,).
    """
    h, result = damped(gram), torch.zeros_like(weight, dtype=torch.float64)
    target = weight.double() @ h[:, kept]
    result[:, kept] = torch.linalg.solve(h[kept][:, kept], target.T).T
    return result


def greedy_surgeon(weight: torch.Tensor, gram: torch.Tensor, groups: int, count: int) -> torch.Tensor:
    """bool (groups,): what stays when ``count`` times the group leaves that costs least once the rest is refitted.

    With P = (X^T X + λI)^-1 over the features still there, removing S costs tr(W_S (P_SS)^-1 W_S^T) and the rest
    becomes W − W_S (P_SS)^-1 P_S: (Hassibi and Stork 1993, for blocks of features). float64.
    """
    w, inverse = weight.double().clone(), torch.linalg.inv(damped(gram))
    features = torch.arange(len(gram)).view(groups, -1)
    keep = torch.ones(groups, dtype=torch.bool)
    for _ in range(count):
        own = inverse[features[:, :, None], features[:, None, :]]  # (groups, s, s)
        own[~keep] = torch.eye(own.shape[-1], dtype=own.dtype)
        columns = w[:, features].transpose(0, 1)  # (groups, out, s)
        precision = own.reciprocal() if own.shape[-1] == 1 else torch.linalg.inv(own)
        cost = (columns * (columns @ precision)).sum((1, 2))
        chosen = int(cost.masked_fill(~keep, torch.inf).argmin())
        s = features[chosen]
        gain = precision[chosen] @ inverse[s]  # (s, in)
        w -= w[:, s] @ gain
        inverse -= inverse[:, s] @ gain
        w[:, s], inverse[s], inverse[:, s] = 0.0, 0.0, 0.0
        keep[chosen] = False
    return keep
