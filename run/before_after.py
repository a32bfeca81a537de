"""What the model is worth before and after: dense, cut without a repair, pruned. None where nothing is measured."""

from typing import Any

from core.plan import PruningPlan
from core.say import say
from core.windows import TokenWindows
from evaluation.evaluate import evaluate, not_finite
from evaluation.perplexity import perplexity
from models.architecture import decoder_layers
from models.expected import without_removed_groups
from run.recall import DensePerplexities
from run.session import Session


def evaluate_dense(session: Session) -> dict[str, Any] | None:
    """Measure the dense model, or take its perplexities from an earlier run."""
    measures = session.settings.evaluation.run_evaluation
    if not measures:
        return None
    perplexities = DensePerplexities(session.evaluation, session.cache)
    if measures == ("ppl",) and not perplexities.missing:
        params = session.architecture.total_params
        sizes = {"parameters": params, "bytes": params * session.saved_dtype.itemsize}
        result: dict[str, Any] = sizes | {"perplexity": {}, "tasks": {}, "latency": None}
    else:
        result = _evaluated(session, session.dense(), "dense", perplexities.missing)
    result["perplexity"] = perplexities.completed(result["perplexity"])
    _say_what_is_not_finite(session, result, "dense")
    return result


def evaluate_unrepaired(session: Session, plan: PruningPlan) -> dict[str, Any] | None:
    """{"perplexity": {dataset: ...}} of the pruned model as it would be without the repair: its groups are silenced by
    hooks. None where nothing is repaired or no perplexity is asked for. The model is left as found."""
    if not (session.settings.repairs and session.evaluation):
        return None
    layers = decoder_layers(session.dense(), session.family)
    with session.stages("evaluate before repair"), without_removed_groups(layers, session.family, plan):
        measured = {
            name: perplexity(
                session.dense(),
                windows,
                batch_size=session.batch_size,
                description=f"before repair: perplexity on {name}",
            )
            for name, windows in session.evaluation.items()
        }
    return {"perplexity": measured}


def evaluate_pruned(session: Session, model: Any) -> dict[str, Any] | None:
    """The same as of the dense model, of the pruned one, which no cache knows."""
    if not session.settings.evaluation.run_evaluation:
        return None
    result = _evaluated(session, model, "pruned", session.evaluation)
    _say_what_is_not_finite(session, result, "pruned")
    return result


def _evaluated(session: Session, model: Any, label: str, windows: dict[str, TokenWindows]) -> dict[str, Any]:
    asked = session.settings.evaluation
    with session.stages(f"evaluate {label}"):
        return evaluate(
            model,
            session.tokenizer,
            windows,
            task_names=list(asked.eval_tasks),
            task_path=asked.eval_task_path,
            measures=set(asked.run_evaluation),
            batch_size=session.batch_size,
            seed=session.settings.calibration.seed,
            label=label,
            stored_as=session.saved_dtype,
        )


def _say_what_is_not_finite(session: Session, result: dict[str, Any], label: str) -> None:
    for sentence in not_finite(result, label):
        say(f"finding: {sentence}")
