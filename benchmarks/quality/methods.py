"""The table of methods. Each changes a model in place and returns the groups it keeps.

A method is a function of (case, ratio) -> bool (G,). It may change weights and biases of a layer's projections, which
``pruned`` restores; the columns of what it does not keep are zeroed for it. Adding a method is adding a function
and a row of METHODS.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.baselines import (
    compensating_bias,
    fluctuation,
    greedy_surgeon,
    increasing_keep,
    least_squares,
    over_kind_mean,
    ranked_keep,
    reconstructed,
    redundant_layers,
    skipped_layers,
    uniform_keep,
)
from benchmarks.quality.case import Case, Keep, Method
from benchmarks.quality.stream import Stream, feature_mask, output_members, silence
from benchmarks.quality.trained import blocks, blocks_and_distilled, distilled, next_token_lora, trained
from core.groups import Architecture
from core.transforms import Transforms
from importance.elimination import eliminate, in_order
from importance.obs_moments import MomentMeter
from importance.priors import measure_prior
from importance.scoring import score_groups
from pruning.planning import Limits, frozen_groups
from pruning.repair import DEFAULT, RepairSettings, repair

Refit = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # weight, gram, kept -> weight
GISP_STEP = 0.05  # of the prunable parameters, a round


# Selection


def random_uniform(case: Case, ratio: float) -> np.ndarray:
    values = np.random.default_rng(case.seed).random(len(case.architecture.groups))
    return uniform_keep(case.architecture, values, ratio)


def uniform(criterion: str) -> Keep:
    return lambda case, ratio: uniform_keep(case.architecture, case.importance(criterion), ratio)


def llm_pruner(case: Case, ratio: float) -> np.ndarray:
    frozen = skipped_layers(case.architecture.num_layers)
    return uniform_keep(case.architecture, case.importance("taylor", "sum"), ratio, frozen)


def ranked(criterion: str, normalise: str | None = None) -> Keep:
    """Importance per parameter, ranked over all groups."""

    return lambda case, ratio: ranked_by(case, case.importance(criterion), ratio, normalise)


def flap_selection(case: Case, ratio: float) -> np.ndarray:
    groups = case.architecture.groups
    scores = np.empty(len(groups))
    for (layer, kind), (_, variance) in case.moments().items():
        weight = _output(case, layer, kind).weight.detach().float().cpu().numpy()
        rows = groups.rows(layer, kind)
        scores[rows] = fluctuation(variance, weight, rows.stop - rows.start, kind)
    return ranked_keep(case.architecture, np.argsort(scores, kind="stable"), ratio)


def gisp(case: Case, ratio: float) -> np.ndarray:
    """GISP: GISP_STEP of the prunable parameters a round, importance measured again on what is left after each.

    I_g over the mean of its kind of block, ranked over the whole model, whatever a group costs. What one round removes
    stays gone, so ratios share their rounds. The authors prune models of billions of parameters in many small rounds;
    half of the prunable parameters take ten here. Their abstract names the normalisation by block and no more could be
    read: of the readings tried on development windows (none, the mean of each layer's block, its Euclidean norm, the
    mean of the kind) this one loses least.
    """
    architecture, removed, round_ = case.architecture, 0.0, 0
    keep = np.ones(len(architecture.groups), dtype=bool)

    def measured() -> np.ndarray:
        silence(case.model, case.family, architecture, keep)
        return case.measured("taylor", "sum")

    while removed < ratio:
        importance = case.once(f"gisp {round_}", measured)
        score = over_kind_mean(architecture.groups, importance, keep)
        round_ += 1
        removed = min(ratio, round_ * GISP_STEP)
        keep = ranked_keep(architecture, np.lexsort([score, keep]), removed)
    return keep


def shortgpt(case: Case, ratio: float) -> np.ndarray:
    model, family, windows = case.model, case.family, case.windows
    prior = case.once("similarity", lambda: measure_prior(model, family, windows, method="similarity"))
    return ~np.isin(case.architecture.groups.layer, redundant_layers(case.architecture, prior.layer, ratio))


# Repair


def flap(case: Case, ratio: float) -> np.ndarray:
    """FLAP's selection, and its bias: what the removed features gave on average."""
    keep = flap_selection(case, ratio)
    for (layer, kind), (mean, _) in case.moments().items():
        module = _output(case, layer, kind)
        gone = ~feature_mask(output_members(case.family)[kind], case.architecture, layer, keep)
        added = compensating_bias(module.weight, torch.from_numpy(mean), gone)
        old = 0.0 if module.bias is None else module.bias.detach()
        module.bias = torch.nn.Parameter(added + old, requires_grad=False)
    return keep


def refitted(selection: Keep, refit: Refit = least_squares) -> Keep:
    """A selection, then a refit of what stays, layer by layer on the pruned stream."""

    def keep(case: Case, ratio: float) -> np.ndarray:
        chosen = selection(case, ratio)
        _sequentially(case, lambda layer, kind, _gram: chosen[case.architecture.groups.rows(layer, kind)], refit)
        return chosen

    return keep


def greedily(widths: Callable[[Architecture, float], np.ndarray], refit: Refit = least_squares) -> Keep:
    """Greedy choice in each block, its inputs those of the pruned and refitted layers before.

    widths: bool (G,), of which only how many groups of a block are False counts. SlimGPT's authors remove channels in
    batches, for speed; these models are small enough for one group at a time, which is what the batches approximate.
    """

    def keep(case: Case, ratio: float) -> np.ndarray:
        groups = case.architecture.groups
        counts = widths(case.architecture, ratio)
        chosen = np.ones(len(groups), dtype=bool)

        def choose(layer: int, kind: int, gram: torch.Tensor) -> np.ndarray:
            rows = groups.rows(layer, kind)
            count, weight = int((~counts[rows]).sum()), _output(case, layer, kind).weight
            chosen[rows] = greedy_surgeon(weight, gram, rows.stop - rows.start, count).cpu().numpy()
            return chosen[rows]

        _sequentially(case, choose, refit)
        return chosen

    return keep


def every_layer_alike(architecture: Architecture, ratio: float) -> np.ndarray:
    return uniform_keep(architecture, np.zeros(len(architecture.groups)), ratio)


def _sequentially(case: Case, choose: Callable[[int, int, torch.Tensor], np.ndarray], refit: Refit) -> None:
    """For each block in order: the Gram matrix of its inputs on the pruned stream, the choice, the refit."""
    stream = Stream(case.model, case.family, case.windows.ids)
    keep = np.ones(len(case.architecture.groups), dtype=bool)
    for layer in range(case.architecture.num_layers):
        for kind, member in enumerate(output_members(case.family)):
            gram = stream.gram(layer, member.path)
            keep[case.architecture.groups.rows(layer, kind)] = choose(layer, kind, gram)
            kept = feature_mask(member, case.architecture, layer, keep)
            if not kept.all():
                module = _output(case, layer, kind)
                module.weight.copy_(refit(module.weight, gram, kept.nonzero()[:, 0].to(gram.device)))
        stream.advance(layer)


def _output(case: Case, layer: int, kind: int) -> Any:
    path = output_members(case.family)[kind].path
    return case.model.get_submodule(case.family.layers)[layer].get_submodule(path)


# Ours


def repaired(selection: Keep, settings: RepairSettings = DEFAULT) -> Keep:
    """A selection, then ``--reconstruct least_squares``."""

    def keep(case: Case, ratio: float) -> np.ndarray:
        chosen = selection(case, ratio)
        repair(case.model, case.family, case.plan(chosen, ratio), case.windows, settings)
        return chosen

    return keep


def unweighted(case: Case, ratio: float) -> np.ndarray:
    """``obs`` without the loss's gradients: every output of every block counts alike."""
    groups = case.architecture.groups

    def values() -> np.ndarray:
        found = np.zeros(len(groups))
        for moments in MomentMeter(case.model, case.family, case.architecture, case.windows):
            for kind, gram in enumerate(moments.inputs):
                rows = groups.rows(moments.layer, kind)
                weight = _output(case, moments.layer, kind).weight.detach()
                found[rows] = in_order(eliminate(gram, weight, weight.shape[1] // (rows.stop - rows.start)))
        return found

    return ranked_by(case, case.once("obs unweighted", values), ratio)


def ranked_by(case: Case, importance: np.ndarray, ratio: float, normalise: str | None = None) -> np.ndarray:
    frozen = frozen_groups(case.architecture, Limits())
    options = Transforms(normalise=normalise)
    scores = score_groups(case.architecture.groups, importance, options, frozen=frozen, prior=None)
    return ranked_keep(case.architecture, scores.order, ratio)


OURS = "ours"  # the program's defaults


def is_variant(method: str) -> bool:
    """The defaults with one ingredient replaced."""
    return method.startswith(f"{OURS}-")


def is_ours(method: str) -> bool:
    """The program's own: its defaults, their variants, what is trained after them, its normalisation by layer."""
    return method in (OURS, "taylor-log") or method.startswith((f"{OURS}-", f"{OURS}+"))


by_default = repaired(ranked("obs"))
METHODS: dict[str, Method] = {
    "random": Method(random_uniform, "groups by chance, every layer alike"),
    "magnitude-uniform": Method(uniform("magnitude"), "summed magnitude of the weights, every layer alike"),
    "magnitude": Method(ranked("magnitude"), "the same per parameter, ranked globally"),
    "wanda-sp": Method(uniform("wanda"), "magnitude × input norm of the output columns, every layer alike"),
    "llm-pruner": Method(llm_pruner, "weight × summed gradient, every layer alike but the ends, which stay"),
    "shortgpt": Method(shortgpt, "whole layers, by block influence"),
    "taylor": Method(ranked("taylor"), "weight × gradient a sequence, per parameter, ranked globally"),
    "taylor-log": Method(ranked("taylor", "log"), "the same, normalised by layer with log"),
    "fisher": Method(ranked("fisher"), "Fisher information of the group's mask, ranked globally"),
    "flap": Method(flap, "fluctuation, z-scored, ranked globally; removed means become a bias"),
    "flap-no-bias": Method(flap_selection, "the same without the bias"),
    "flap+refit": Method(
        refitted(flap_selection), "the same selection, least squares in place of the bias", refits=True
    ),
    "flap+grail": Method(
        refitted(flap_selection, reconstructed), "the same selection, GRAIL's ridge regression", refits=True
    ),
    "surgeon+refit": Method(
        greedily(every_layer_alike), "greedy optimal brain surgeon, every layer alike, least squares", refits=True
    ),
    "slimgpt": Method(greedily(increasing_keep), "the same, more of each deeper layer", refits=True),
    "slimgpt+grail": Method(
        greedily(increasing_keep, reconstructed), "the same choice, GRAIL's ridge regression", refits=True
    ),
    "taylor+refit": Method(refitted(ranked("taylor")), "taylor's selection, least squares", refits=True),
    "fisher+refit": Method(refitted(ranked("fisher")), "fisher's selection, least squares", refits=True),
    "gisp": Method(gisp, "weight × summed gradient over the mean of its kind, ranked globally, in rounds of 5 %"),
    "llm-pruner+lora": Method(
        trained(llm_pruner, next_token_lora), "llm-pruner, then LoRA on the next token of the text", trains=True
    ),
    OURS: Method(by_default, "the defaults: obs, ranked globally, repaired towards the dense stream"),
    "ours+blocks": Method(trained(by_default, blocks), "the defaults, then --recover blocks", refits=True, trains=True),
    "ours+distill": Method(
        trained(by_default, distilled), "the defaults, then --recover distill", refits=True, trains=True
    ),
    "ours+blocks+distill": Method(
        trained(by_default, blocks_and_distilled),
        "the defaults, then --recover blocks,distill, half of the tokens at most for the former",
        refits=True,
        trains=True,
    ),
    "ours-no-repair": Method(ranked("obs"), "without the repair"),
    "ours-by-taylor": Method(repaired(ranked("taylor")), "taylor in place of obs"),
    "ours-unweighted": Method(repaired(unweighted), "obs without the loss's gradients"),
    "ours-uniform": Method(repaired(uniform("obs")), "every layer alike in place of the global ranking"),
    "ours-outputs": Method(
        repaired(ranked("obs"), RepairSettings(modules="outputs")), "o_proj and down_proj alone repaired"
    ),
    "ours-unmixed": Method(
        repaired(ranked("obs"), RepairSettings(text="calibration")), "repaired on the windows alone"
    ),
    "ours-on-pruned": Method(
        repaired(ranked("obs"), RepairSettings(target="pruned")), "repaired towards whole blocks on the pruned stream"
    ),
    "ours-to-dense": Method(
        repaired(ranked("obs"), RepairSettings(target="dense")), "repaired towards the dense blocks' outputs"
    ),
}
