"""The end of a run: carry out the plan, save, let the folder prove itself, export, and describe it."""

import argparse
import sys
from pathlib import Path
from typing import Any

from cli.job import Job
from cli.low_memory import StreamedModel
from cli.record import Stages
from core.files import write_text
from core.plan import PruningPlan
from core.windows import TokenWindows
from models.card import inherited_metadata, model_card
from models.gguf import export_gguf
from models.narrow import empty_narrow_model
from models.reference import reference, verification_windows
from models.saving import save_checkpoint
from models.stock import save_stock_checkpoint, stock_model
from models.verification import insist, verify, verify_files, write_verification
from pruning.repair_report import RepairReport
from pruning.surgery import operate


def deliver(
    model: Any,
    job: Job,
    options: argparse.Namespace,
    plan: PruningPlan,
    calibration: TokenWindows | None,
    stages: Stages,
) -> tuple[Any, list[Path]]:
    """Prune ``model`` (repaired or not; it must not be used again) and write what the options ask for.

    Returns the pruned model (None where it was never in memory) and the paths, ``<output>/model`` first. A folder
    that fails its checks is set aside as ``model.failed``: VerificationError.
    """
    family, folder = job.source.family, options.output / "model"
    saves = not options.no_save_model
    if isinstance(model, StreamedModel):
        if not saves:
            return None, []
        with stages("surgery and save"):
            model.prune_and_save(plan, folder)
        proof = verify_files(folder, family, plan) if options.verify else None
        pruned = None
    else:
        proves = saves and options.verify
        windows = verification_windows(calibration, job.source.config.vocab_size, job.source.context, options.seed)
        with stages("surgery"):
            expected = reference(model, family, plan, windows) if proves else None
            pruned = operate(model, empty_narrow_model(model, family, plan), family, plan)
            if options.target == "stock":
                pruned, _ = stock_model(pruned, family)
        if not saves:
            return pruned, []
        with stages("save"):
            if options.target == "stock":
                save_stock_checkpoint(pruned, job.source.tokenizer, folder, job.saved_dtype, options.max_shard_size)
            else:
                tokenizer, size = job.source.tokenizer, options.max_shard_size
                save_checkpoint(pruned, family, tokenizer, folder, job.saved_dtype, size)
        proof = None
        if expected is not None:
            with stages("verify"):
                proof = verify(folder, family, expected, device=job.device, dtype=job.dtype)
    written = [folder]
    if proof is not None:
        written.append(write_verification(options.output / "analysis" / "verification.json", proof))
        insist(proof, folder)
        print(proof.line(), file=sys.stderr)
    if options.export == "gguf":
        with stages("export"):
            exported = export_gguf(folder, options.output / "model.gguf")
        written.append(exported.path)
        for note in exported.notes:
            print(f"note: {note}", file=sys.stderr)
    return pruned, written


def write_card(
    plan: PruningPlan,
    job: Job,
    options: argparse.Namespace,
    calibration: TokenWindows | None,
    dense: dict[str, Any] | None,
    pruned: dict[str, Any] | None,
    repaired: RepairReport | None = None,
) -> Path:
    """``<output>/model/README.md``: what was removed, how, with what result, and how to load it."""
    transforms: dict[str, Any] = {}
    if job.plan is None:
        if job.transforms.clip:
            transforms["clip percentiles"] = f"{job.transforms.clip_low:g} to {job.transforms.clip_high:g}"
        if job.transforms.normalise:
            transforms["normalisation"] = job.transforms.normalise
        if job.transforms.temperature:
            transforms["temperature"] = job.transforms.temperature
            transforms["tau"] = job.transforms.tau
    card = model_card(
        plan,
        base_model=options.base_model,
        criterion=None if job.plan is not None else options.importance_method,
        transforms=transforms,
        calibration=calibration.source if calibration is not None else "",
        stored_dtype=str(job.saved_dtype).removeprefix("torch."),
        dense=dense,
        pruned=pruned,
        repair=repaired.sentence() if repaired is not None else "",
        inherited=inherited_metadata(job.source.path),
        ships_code=options.target != "stock",
    )
    return write_text(options.output / "model" / "README.md", card)
