"""Self-proof: a saved folder, loaded as its users will, computes what the dense model computes without the groups
that went.

``models.expected`` runs before surgery; ``verify`` then loads the folder through the Auto classes and measures:

    head mapping    widths of config.json == shapes of the stored tensors == the plan's; H/K as in the dense model
    load            tensors that are missing from the files or left over in them
    logits          against the reference
    generation      greedy with a cache, against greedy without one in the dense model
    left padding    a padded batch on its real tokens, against the same tokens alone
    attention       eager against sdpa (families that have both)

The error of a comparison is ‖a − b‖₂ / ‖b‖₂ over all logits compared, in float64.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from core.engine import engine_of
from core.errors import ModelError, VerificationError
from core.families import Family
from core.files import write_json
from core.groups import LayerShape
from core.kinds import TABLE
from models.architecture import decoder_layers
from models.expected import Blocks, Reference, logits_of, recorded_blocks, relative_error
from models.faults import first_line
from models.loading_afresh import NotHereError, excuse, load_afresh
from models.module_cache import own_module_cache
from models.stored import layer_shapes, misfits, tensor_shapes

DENSE, RECOVERED = "the dense model without the removed groups", "the recovered model in memory"
CHECKS = ("head mapping", "load", "logits", "generation", "left padding", "attention")

# The two sides sum the same products in another order. In float32 that is rounding: up to 6e-7 measured with 32
# layers on a CPU, and room for models whose activations are less even. In half precision a sum that falls on another
# side of a rounding step moves a value by eps (2^-7 and 2^-10), and later layers carry it on: up to 1.3e-2 (bfloat16)
# and 1.6e-3 (float16) measured with 32 layers. On the embedded model a shifted KV head is an error of 0.24, twice the
# rope base 0.10, two swapped channels of one layer 0.007: half precision tells the first two, float32 all.
TOLERANCES = {torch.float32: 3e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}

# How far rounding is carried depends on the model: in bfloat16 on a GPU, padding was an error of 0.059 with 32 layers
# of Mistral-7B's shape and random weights. So a saved model may differ by twice what other positions, equal but for
# rounding, change in the reference itself, and by no more than four times the least.
OF_SHIFTING, WIDEST = 2, 4


def tolerance_of(dtype: torch.dtype, reference: Reference) -> float:
    """The largest relative error that may be rounding, in computations of ``dtype``."""
    least = TOLERANCES[dtype]
    return min(max(least, OF_SHIFTING * reference.rounding), WIDEST * least)


@dataclass(frozen=True)
class Check:
    """One comparison: passed where error <= tolerance, so never for NaN. detail: what was found, for a reader."""

    name: str
    error: float
    tolerance: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.error <= self.tolerance)


@dataclass(frozen=True)
class Verification:
    """The checks that ran, in order, and a sentence for each that could not.

    unproved: what kept this machine from making the checks that are not_run, empty where nothing did. That says
    nothing against the model: the folder stays, and the checks can be made elsewhere. compared_with: what the folder
    must compute. rounding: ``Reference.rounding``, which tolerances follow.
    """

    dtype: str
    device: str
    num_windows: int
    seq_len: int
    checks: list[Check] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    unproved: str = ""
    compared_with: str = DENSE
    rounding: float | None = None

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    @property
    def passed(self) -> bool:
        return not self.failed

    @property
    def loaded(self) -> bool:
        return any(check.name == "load" for check in self.checks)

    def line(self) -> str:
        """One line for the console."""
        if self.unproved and not self.loaded and not self.failed:
            return f"warning: the saved model could not be verified here ({self.unproved}); it was written completely"
        if self.failed:
            first = self.failed[0]
            found = first.detail or f"error {first.error:.2g}, at most {first.tolerance:.2g} allowed"
            return f"verification failed at {first.name}: {found}"
        worst = max(self.checks, key=lambda check: check.error / check.tolerance if check.tolerance else 0.0)
        line = f"verified: {len(self.checks)} checks, largest error {worst.error:.1e} ({worst.name}, {self.dtype})"
        if self.compared_with != DENSE:
            line += f", against {self.compared_with}"
        return line + (f"; not checked here: {', '.join(self.not_run)} ({self.unproved})" if self.unproved else "")

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "passed": None if self.unproved and self.passed and not self.loaded else self.passed,
            "dtype": self.dtype,
            "device": self.device,
            "num_windows": self.num_windows,
            "seq_len": self.seq_len,
            "compared_with": self.compared_with,
            "rounding": self.rounding,
            "checks": [asdict(check) | {"passed": check.passed} for check in self.checks],
            "not_run": self.not_run,
        }


def not_verified(reason: str) -> Verification:
    """A proof that could not be made, because of the machine and not of the model."""
    return Verification("none", "none", 0, 0, not_run=dict.fromkeys(CHECKS, reason), unproved=reason)


@torch.no_grad()
def verify(
    folder: Path,
    family: Family,
    reference: Reference,
    *,
    device: torch.device,
    dtype: torch.dtype,
    places: dict[str, Any] | None = None,
) -> Verification:
    """Load ``folder`` afresh and measure every check; what a failed load leaves unmeasured is in ``not_run``.

    dtype is the one the reference was computed in: weights stored in bfloat16 and computed in float32 compare as
    float32, exactly. places: of the parts of a model that the device does not hold (``places_on_disk``). What this
    machine cannot do (no memory for a second model, no disk or network, a package that cannot be imported) is in
    ``not_run`` with its reason, and is no failure.
    """
    rows, length = reference.windows.shape
    result = Verification(str(dtype).removeprefix("torch."), str(device), rows, length, rounding=reference.rounding)
    result.checks.append(_head_mapping(folder, family, reference.layers))
    try:
        with own_module_cache(folder.parent):
            return _verified_loading(result, folder, family, reference, device, dtype, places)
    except (NotHereError, OSError) as error:  # an OSError: there is no place for the folder's code
        reason = str(error) if isinstance(error, NotHereError) else first_line(error)
        missed = [name for name in CHECKS if name not in [check.name for check in result.checks]]
        result.not_run.update(dict.fromkeys(missed, reason))
        return replace(result, unproved=reason)


def _verified_loading(
    result: Verification,
    folder: Path,
    family: Family,
    reference: Reference,
    device: torch.device,
    dtype: torch.dtype,
    places: dict[str, Any] | None,
) -> Verification:
    """``result`` with the checks that need the loaded model. Raises NotHereError."""
    model, problems = load_afresh(folder, family, device, dtype, places)
    error = math.nan if model is None else float(len(problems))
    result.checks.append(Check("load", error, 0.0, problems[0] if problems else ""))
    if model is None:
        result.not_run.update(dict.fromkeys(CHECKS[2:], "the folder does not load"))
        return result
    compared = partial(_compared, folder, family, tolerance_of(dtype, reference))
    ids = torch.from_numpy(reference.windows).to(device)
    with recorded_blocks(decoder_layers(model, family), family) as blocks:
        logits, alone = _logits(model, ids, reference, compared)
    if alone is None:
        result.checks.append(logits)
        result.not_run.update(dict.fromkeys(CHECKS[3:], "the model does not run"))
        return result
    if not logits.passed:
        logits = replace(logits, detail=_first_difference(blocks, reference.blocks, logits.tolerance))
    result.checks.append(logits)
    result.checks.append(compared("generation", lambda: _generated(model, reference)))
    result.checks.append(compared("left padding", lambda: left_padded(model, ids, alone)))
    if getattr(model.config, "attn_logit_softcapping", None):
        result.not_run["attention"] = "sdpa leaves out this family's soft caps; use eager"
    else:
        model.set_attn_implementation("eager" if model.config._attn_implementation == "sdpa" else "sdpa")
        result.checks.append(compared("attention", lambda: (logits_of(model, ids), alone)))
    return result


def _logits(
    model: Any, ids: torch.Tensor, reference: Reference, compared: Callable[..., Check]
) -> tuple[Check, torch.Tensor | None]:
    """The comparison with the reference, and the logits (None where the model raises)."""
    kept: list[torch.Tensor] = []

    def pair() -> tuple[torch.Tensor, torch.Tensor]:
        kept.append(logits_of(model, ids))
        return kept[0], reference.logits

    check = compared("logits", pair)
    return check, kept[0] if kept else None


@torch.no_grad()
def surgery_check(model: Any, reference: Reference, dtype: torch.dtype) -> Check:
    """The logits of a model that was just cut against ``reference``, that of the dense one; dtype: of the computation.

    For a model that is trained afterwards, whose saved folder can be compared with itself alone.
    """
    error = relative_error(
        logits_of(model, torch.from_numpy(reference.windows).to(engine_of(model).device)), reference.logits
    )
    most = tolerance_of(dtype, reference)
    return Check("surgery", error, most, f"its logits differ by {error:.2g}, {most:.2g} allowed")


def insist(verification: Verification, folder: Path) -> None:
    """Where a check failed: rename ``folder`` to ``<name>.failed``, so that nobody serves it, and raise."""
    if verification.passed:
        return
    failed = folder.with_name(folder.name + ".failed")
    shutil.rmtree(failed, ignore_errors=True)
    folder.rename(failed)
    raise VerificationError(f"{verification.line()}; the model is set aside as {failed}; the report has every check")


def write_verification(path: Path, verification: Verification) -> Path:
    return write_json(path, verification.to_json())


def _generated(model: Any, reference: Reference) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of ``generate`` with its cache and the reference's, up to the first token that they choose differently.

    Behind that token the texts differ and logits no longer compare. Where the logits before it agree the two tokens
    were a tie; where they do not the check fails.
    """
    ids = reference.prompts.to(model.device)
    saved = model.generation_config
    # Greedy, whatever sampling or penalties the checkpoint asks for.
    model.generation_config = transformers.GenerationConfig()
    try:
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=reference.continuation.shape[1],
            do_sample=False,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=True,
        )
    finally:
        model.generation_config = saved
    steps = torch.stack(out.logits, dim=1).float().cpu()
    same = out.sequences[:, ids.shape[1] :].cpu() == reference.continuation
    comparable = torch.ones_like(same)
    comparable[:, 1:] = same[:, :-1].cumprod(dim=1).bool()
    return steps[comparable], reference.step_logits[comparable]


def left_padded(model: Any, ids: torch.Tensor, alone: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the windows' real tokens, window i shortened and padded on the left by a different amount, and alone.

    Attention is causal, so what follows a token does not change its logits, and padding must not either. Positions
    are left to the model (rotary embeddings are relative): given position ids, transformers takes a padded row for
    packed sequences and separates the padding by itself, so that a mask which is ignored would go unseen.
    """
    rows, length = ids.shape
    padding = torch.arange(rows, device=ids.device) * length // (2 * rows) + 1  # at least 1, at most half
    position = torch.arange(length, device=ids.device)[None] - padding[:, None]
    mask = position >= 0
    position = position.clamp(min=0)
    padded = ids.gather(1, position) * mask  # the padding token's id is of no importance: 0
    actual = logits_of(model, padded, attention_mask=mask.long())
    index = position.cpu()[..., None].expand(-1, -1, alone.shape[-1])
    real = mask.cpu()
    return actual[real], alone.gather(1, index)[real]


def _compared(
    folder: Path, family: Family, tolerance: float, name: str, pair: Callable[[], tuple[torch.Tensor, torch.Tensor]]
) -> Check:
    """The relative error of (actual, expected); a model that fails to compute them has failed the check.

    Raises NotHereError where it is the machine that fails.
    """
    try:
        actual, expected = pair()
    except Exception as error:  # the folder's own classes run here; whatever they raise is the finding
        excuse(error, folder, family)
        return Check(name, math.nan, tolerance, first_line(error))
    return Check(name, relative_error(actual, expected), tolerance)


def _first_difference(actual: Blocks, expected: Blocks, tolerance: float) -> str:
    for (layer, kind), output in sorted(expected.items()):
        error = relative_error(actual[layer, kind], output)
        if not error <= tolerance:
            name = TABLE[kind].name
            return f"layer {layer} {name} is the first block that differs, by {error:.2g} (allowed {tolerance:.2g})"
    return "no block differs, so look at the final norm and the head"


def _head_mapping(folder: Path, family: Family, layers: tuple[LayerShape, ...]) -> Check:
    """Read from the files alone, as another engine would. error: how many layers or tensors do not fit."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = layer_shapes(config)
        unfit = misfits(found, family, tensor_shapes(folder))
    except (OSError, ValueError, ModelError) as error:
        return Check("head mapping", 1.0, 0.0, first_line(error))
    wrong = []
    for layer, (ours, planned) in enumerate(zip(found, layers, strict=False)):
        ratio = planned.num_heads // planned.num_kv_heads
        if ours.num_heads // ours.num_kv_heads != ratio:
            wrong.append(
                f"layer {layer} has {ours.num_heads} query heads for {ours.num_kv_heads} KV heads, not {ratio} each"
            )
        elif (ours.widths, ours.head_dim) != (planned.widths, planned.head_dim):
            wrong.append(f"layer {layer} has widths {ours.widths} where the plan leaves {planned.widths}")
    if len(found) != len(layers):
        wrong.append(f"{len(found)} layers where the plan leaves {len(layers)}")
    wrong += unfit
    return Check("head mapping", float(len(wrong)), 0.0, wrong[0] if wrong else "")
