"""Published one-shot methods as arithmetic on arrays: what each keeps, and how it repairs what stays.

Written from the papers, in the alphabet of this project; nothing here runs a model, ``benchmarks/quality`` does. W is
the weight (out, in) of ``o_proj`` or ``down_proj``, X (tokens, in) its inputs, j an input feature; a group owns one
feature (an MLP channel) or H/K·D of them (a KV group).

    LLM-Pruner  arXiv:2305.11627   I_g = Σ_{w in g} |w · Σ_n ∂L_n/∂w|, one ratio in all layers but the first and last
    Wanda-sp    arXiv:2312.11983   I_g = Σ_{j in g} Σ_d |W_dj| · ‖X_j‖₂, one ratio in all layers
    FLAP        arXiv:2312.11983   Var(X_j) · ‖W_:j‖₂², z-score inside a block, ranked globally; removed means → bias
    ShortGPT    arXiv:2403.03853   layers of the least 1 − cos(stream before, stream after) leave whole
    OSSCAR      arXiv:2403.12983   choice inside each block by the layer's output error, least squares on the rest;
    SlimGPT     arXiv:2412.18110   both stand behind ``greedy_surgeon``: one group at a time, the rest refitted. SlimGPT
                                   removes more the deeper a layer is: ``increasing_keep``
    GRAIL       arXiv:2602.23795   ridge regression of all features on those that stay, multiplied into W
    GISP        arXiv:2510.18030   I_g = Σ_{w in g} |w · Σ_n ∂L_n/∂w| over the mean of its kind, ranked globally, a few
                                   groups a round, measured again after each
"""

from fractions import Fraction

import numpy as np
import torch

from core.groups import ATTENTION, MLP, Architecture, GroupTable
from pruning.planning import Limits, plan_removal, requested_params

DAMPING = 0.01  # λ over the mean diagonal of X^T X
GRAIL_DAMPING = 0.001  # the same of GRAIL's regression
SLIMGPT_FIRST = 0.25  # share of the first layer over that of the model: its authors' program has 6 % where 24 % go
SLIMGPT_MOST = 0.95  # of any layer
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


def increasing_shares(ratio: float, sizes: np.ndarray) -> np.ndarray:
    """SlimGPT's incremental pruning ratio: what each layer loses, float64 (L,), ``ratio`` on average.

        r_i = r_0 + (r_{L-1} − r_0) · ln(1 + i) / ln L

    r_0 is SLIMGPT_FIRST times ``ratio``, or as much as keeps r_{L-1} at SLIMGPT_MOST; r_{L-1} follows from the average.
    sizes: prunable parameters by layer, which weigh it.
    """
    if len(sizes) == 1:
        return np.array([ratio])
    curve = np.log1p(np.arange(len(sizes))) / np.log(len(sizes))
    mean = float(np.average(curve, weights=sizes))
    first = max(SLIMGPT_FIRST * ratio, (ratio - SLIMGPT_MOST * mean) / (1 - mean))
    return np.asarray(first + (ratio - first) / mean * curve)


def increasing_keep(architecture: Architecture, ratio: float) -> np.ndarray:
    """bool (G,): how many groups of each block SlimGPT removes, as the first of the block.

    Of a layer's share KV groups take that of K, to the nearest whole number (a half: the smaller), channels the rest.
    What is left over goes one channel a layer, from the last layer on.
    """
    layers = architecture.layers
    shares = increasing_shares(ratio, np.array([shape.prunable_params for shape in layers], dtype=np.float64))
    budget, removed = requested_params(architecture, ratio, "prunable"), {}
    for index, (shape, share) in enumerate(zip(layers, shares, strict=True)):
        kv_groups = min(int(np.ceil(share * shape.num_kv_heads - 0.5)), shape.num_kv_heads - 1)
        rest = share * shape.prunable_params - kv_groups * shape.kv_group_params
        channels = min(max(0, int(rest / shape.channel_params + 1e-9)), shape.intermediate_size - 1)
        removed[index, ATTENTION], removed[index, MLP] = kv_groups, channels
        budget -= kv_groups * shape.kv_group_params + channels * shape.channel_params
    while taken := [
        index
        for index in reversed(range(len(layers)))
        if removed[index, MLP] < layers[index].intermediate_size - 1 and layers[index].channel_params <= budget
    ]:
        for index in taken:
            if layers[index].channel_params <= budget:
                removed[index, MLP] += 1
                budget -= layers[index].channel_params
    return lowest_removed(architecture, np.zeros(len(architecture.groups)), removed)


def over_kind_mean(groups: GroupTable, importance: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """GISP's normalisation, float64 (G,): importance over the mean of what is left of its kind in the whole model.

    So attention groups and channels, which are of other sizes, are ranked together. What is gone has no influence and
    gets 0; so do all of a kind without importance.
    """
    there = np.where(keep, importance, 0.0)
    sums, counts = (np.bincount(groups.kind, weights=values) for values in (there, keep))
    mean = sums / np.maximum(counts, 1)
    return there / np.where(mean > 0, mean, 1.0)[groups.kind]


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
    gone = gone.to(weight.device)
    return weight[:, gone] @ mean.to(weight)[gone]


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


def damped(gram: torch.Tensor, share: float = DAMPING) -> torch.Tensor:
    """X^T X + λI, float64 (in, in), λ = ``share`` of the mean diagonal; I alone where all inputs are 0."""
    strength = float(gram.diagonal().mean()) * share
    return gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device) * (strength if strength > 0 else 1.0)


def least_squares(weight: torch.Tensor, gram: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """float64 (out, in), zero outside ``kept``: the weights that give W's outputs from the kept features alone.

    W_k ← (W X^T X_k + λ W_k)(X_k^T X_k + λI)^-1, which minimises ‖X W^T − X_k Ŵ^T‖² + λ‖Ŵ − W_k‖². kept: int64 (k,).
    """
    h, result = damped(gram), torch.zeros_like(weight, dtype=torch.float64)
    target = weight.double() @ h[:, kept]
    result[:, kept] = torch.linalg.solve(h[kept][:, kept], target.T).T
    return result


def reconstructed(weight: torch.Tensor, gram: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """GRAIL, float64 (out, in), zero outside ``kept``: W on all features as ridge regression tells them from the kept.

    B = X^T X_k (X_k^T X_k + λI)^-1 minimises ‖X − X_k B^T‖² + λ‖B‖², and Ŵ_k = W B. λ: GRAIL_DAMPING of the mean
    diagonal of X_k^T X_k. kept: int64 (k,). Beside ``least_squares``, λ draws to 0 in place of W_k.
    """
    result = torch.zeros_like(weight, dtype=torch.float64)
    ridge = damped(gram[kept][:, kept], GRAIL_DAMPING)
    result[:, kept] = torch.linalg.solve(ridge, (weight.double() @ gram[:, kept]).T).T
    return result


def greedy_surgeon(weight: torch.Tensor, gram: torch.Tensor, groups: int, count: int) -> torch.Tensor:
    """bool (groups,): what stays when ``count`` times the group leaves that costs least once the rest is refitted.

    With P = (X^T X + λI)^-1 over the features still there, removing S costs tr(W_S (P_SS)^-1 W_S^T) and the rest
    becomes W − W_S (P_SS)^-1 P_S: (Hassibi and Stork 1993, for blocks of features). float64.
    """
    w, inverse = weight.double().clone(), torch.linalg.inv(damped(gram))
    features = torch.arange(len(gram), device=gram.device).view(groups, -1)
    keep = torch.ones(groups, dtype=torch.bool, device=gram.device)
    nothing = torch.eye(features.shape[1], dtype=w.dtype, device=gram.device)  # what is gone has no inverse
    for _ in range(count):
        own = inverse[features[:, :, None], features[:, None, :]]  # (groups, s, s)
        own = torch.where(keep[:, None, None], own, nothing)
        columns = w[:, features].transpose(0, 1)  # (groups, out, s)
        precision = own.reciprocal() if own.shape[-1] == 1 else torch.linalg.inv(own)
        cost = (columns * (columns @ precision)).sum((1, 2))
        chosen = int(cost.masked_fill(~keep, torch.inf).argmin())
        s = features[chosen]
        gain = precision[chosen] @ inverse[s]  # (s, in)
        w -= w[:, s] @ gain
        inverse -= inverse[:, s] @ gain
        w.index_fill_(1, s, 0.0)
        inverse.index_fill_(0, s, 0.0).index_fill_(1, s, 0.0)
        keep[chosen] = False
    return keep
