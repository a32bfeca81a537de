"""What the model is worth before and after: dense, cut without a repair, repaired, recovered. None where nothing is
measured."""

from collections.abc import Mapping
from typing import Any

from core.narrowed import left_out
from core.plan import PruningPlan
from core.say import note, say
from core.windows import TokenWindows
from evaluation.distance import DenseStates, Distance, Head
from evaluation.evaluate import evaluate, not_finite, nothing_measured, on_texts
from evaluation.perplexity import Watch
from models.architecture import decoder_layers
from models.expected import without_removed_groups
from run.recall import DensePerplexities
from run.self_windows import chat_prompts
from run.session import Session


def evaluate_dense(session: Session) -> dict[str, Any] | None:
    """Measure the dense model, or take its perplexities from an earlier run; keep what the pruned one's distance from
    it is measured by. A dry run, which has nothing to compare them with, measures no distance and lets it write
    nothing."""
    prunes = not session.settings.output.dry_run
    measures = _measures(session)
    if not measures:
        return None
    if not prunes:
        measures -= {"generation"}
    perplexities = DensePerplexities(_texts(session), session.cache)
    if measures <= {"ppl"} and not perplexities.missing and not prunes:
        params = session.architecture.total_params
        sizes = {"parameters": params, "bytes": params * session.saved_dtype.itemsize}
        result: dict[str, Any] = sizes | nothing_measured()
    else:
        model = session.dense()
        with session.stages("evaluate dense"):
            session.dense_states = _dense_states(session, model) if prunes else {}
            result = _evaluated(session, model, "dense", measures, perplexities.missing, session.dense_states)
            for name in perplexities.known if prunes else ():
                session.dense_states[name].fill(model, session.evaluation[name], session.batch_size, f"dense: {name}")
    result["perplexity"] = perplexities.completed(result["perplexity"])
    _say_what_is_not_finite(session, result, "dense")
    return result


def evaluate_unrepaired(session: Session, plan: PruningPlan) -> dict[str, Any] | None:
    """{"perplexity": {dataset: ...}, "distance": {dataset: ...}} of the pruned model as it would be without the repair:
    the dense one computes without its groups. None where nothing is repaired or no perplexity is asked for. The model
    is left as found."""
    if not (session.settings.repairs and _own_texts(session)):
        return None
    layers = decoder_layers(session.dense(), session.family)
    without = without_removed_groups(layers, session.family, plan, left_out)
    with session.stages("evaluate before repair"), without:
        return on_texts(
            session.dense(),
            _own_texts(session),
            batch_size=session.batch_size,
            label="before repair",
            watches=_distances(session, _own_texts(session)),
        )


def evaluate_unrecovered(session: Session, model: Any) -> dict[str, Any] | None:
    """{"perplexity": {dataset: ...}, ...} of the cut model before it is trained. None where it is not, or no perplexity
    is asked for."""
    if not (session.settings.recovers and _own_texts(session)):
        return None
    with session.stages("evaluate before recovery"):
        return on_texts(
            model,
            _own_texts(session),
            batch_size=session.batch_size,
            label="before recovery",
            watches=_distances(session, _own_texts(session)),
        )


def evaluate_pruned(session: Session, model: Any) -> dict[str, Any] | None:
    """The same as of the dense model, of the pruned one, which no cache knows; and its distance from the dense one."""
    measures = _measures(session)
    if not measures:
        return None
    with session.stages("evaluate pruned"):
        result = _evaluated(session, model, "pruned", measures, _texts(session), _distances(session, _texts(session)))
    _say_what_is_not_finite(session, result, "pruned")
    return result


def _measures(session: Session) -> set[str]:
    """Those of ``--run_evaluation``, without what would read all weights again for every token."""
    measures = set(session.settings.evaluation.run_evaluation)
    if session.streamed and "generation" in measures:
        note(
            f"weights are {session.engine.name}, so what the models write is not measured (generation of "
            "--run_evaluation)"
        )
        measures.remove("generation")
    return measures


def _texts(session: Session) -> dict[str, TokenWindows]:
    """Those whose perplexity is measured."""
    asked = session.settings.evaluation.perplexity_on
    return {name: windows for name, windows in session.evaluation.items() if name in asked}


def _own_texts(session: Session) -> dict[str, TokenWindows]:
    """Of these, the ones that were asked for: models on the way need not be judged elsewhere too."""
    asked = session.settings.evaluation.eval_datasets
    return {name: windows for name, windows in _texts(session).items() if name in asked}


def _dense_states(session: Session, model: Any) -> dict[str, DenseStates]:
    texts = _texts(session)
    if not texts:
        return {}
    head = Head.of(model)
    return {name: DenseStates(windows, head) for name, windows in texts.items()}


def _distances(session: Session, texts: dict[str, TokenWindows]) -> dict[str, Distance]:
    return {name: Distance(session.dense_states[name]) for name in texts}


def _evaluated(
    session: Session,
    model: Any,
    label: str,
    measures: set[str],
    windows: dict[str, TokenWindows],
    watches: Mapping[str, Watch],
) -> dict[str, Any]:
    asked = session.settings.evaluation
    return evaluate(
        model,
        session.tokenizer,
        windows,
        task_names=list(asked.eval_tasks),
        task_path=asked.eval_task_path,
        measures=measures,
        batch_size=session.batch_size,
        seed=session.settings.calibration.seed,
        label=label,
        stored_as=session.saved_dtype,
        watches=watches,
        beginnings=session.evaluation,
        chat=chat_prompts(session) if "generation" in measures else (),
    )


def _say_what_is_not_finite(session: Session, result: dict[str, Any], label: str) -> None:
    for sentence in not_finite(result, label):
        say(f"finding: {sentence}")
