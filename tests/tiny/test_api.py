"""``import global_pruning as gp``: what the command does, from Python, at once or step by step."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from api_cases import SMALL, equal, state_of
from transformers import AutoModelForCausalLM
from workspace import Workspace, observe, write_text

import global_pruning as gp
from core.plan import PruningPlan
from diagnostics.findings.finding import SEVERITIES
from pruning.plan_file import write_plan


@pytest.fixture(scope="module")
def session(workspace: Workspace) -> gp.Session:
    return gp.open(workspace.model, dataset=workspace.text, **SMALL)


@pytest.fixture(scope="module")
def plan(session: gp.Session) -> PruningPlan:
    return session.plan(session.score("obs"), ratio=0.4, ratio_of="prunable")


# --- everything at once ---


def test_prune_is_the_command(workspace: Workspace) -> None:
    """The same plan, bytes and files, for the same settings; and the command line that it names asks for the same."""
    by_command = workspace.run("by command", "--reconstruct", "least_squares", "--eval_datasets", str(workspace.text))
    result = gp.prune(
        workspace.model,
        ratio=0.4,
        ratio_of="prunable",
        dataset=workspace.text,
        output=workspace.root / "by call",
        importance_method="taylor",
        reconstruct="least_squares",
        eval_seq_len=32,
        eval_datasets=[workspace.text],
        run_evaluation="ppl",
        **SMALL,
    )
    assert observe(result.path) == observe(by_command)
    weights = [folder / "model" / "model.safetensors" for folder in (result.path, by_command)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    records = [json.loads((folder / "run.json").read_text()) for folder in (result.path, by_command)]
    assert [record["options"] | {"output": ""} for record in records[:1]] == [records[1]["options"] | {"output": ""}]

    name = str(workspace.text)
    assert result.perplexity[name][1] == result.evaluation["pruned"]["perplexity"][name]["perplexity"]  # type: ignore[index]
    assert result.plan.removed_params == result.plan.architecture.total_params - result.model.num_parameters()
    assert result.findings[0].description in result._repr_html_()
    assert "perplexity" in repr(result)


def test_a_dry_run_has_no_model_and_needs_none(workspace: Workspace) -> None:
    result = gp.prune(workspace.model, dataset=workspace.text, output=workspace.root / "dry", dry_run=True, **SMALL)
    assert result.model is None
    assert "parameters" in result._repr_html_()


WRONG_OPTIONS: dict[str, dict[str, Any]] = {
    "pruning_ratio: '1.5' is not a number in (0, 1)": {"ratio": 1.5},
    "pruning_ratio: 'a fifth' is not": {"ratio": "a fifth"},
    "num_samples: '0' is not": {"num_samples": 0},
    "dry_run='yes' is neither True nor False": {"dry_run": "yes"},
    "target='tpu' is none of hf, stock": {"target": "tpu"},
    "--device gpu is not one of": {"device": "gpu"},
    "overwite is not an option; did you mean overwrite?": {"overwite": True},
    "base_model='demo': ": {"base_model": "demo"},
    "run_evaluation: 'ppl,foo' is not": {"run_evaluation": ["ppl", "foo"]},
    "dataset is a dict; write texts with shares as 'pydoc:0.7,self:0.3'": {"dataset": {"pydoc": 0.7, "self": 0.3}},
    "dataset is of type int; give a name or a path": {"dataset": 3},
    "num_samples is a dict; give text": {"num_samples": {}},
    "--low_memory is another word": {"low_memory": True, "engine": "resident"},
}


@pytest.mark.parametrize("says", WRONG_OPTIONS)
def test_wrong_options_are_one_line_and_leave_no_folder(says: str, workspace: Workspace) -> None:
    output = workspace.root / "never"
    with pytest.raises(gp.UsageError) as caught:
        gp.prune(workspace.model, **{"dataset": workspace.text, "output": output, **SMALL} | WRONG_OPTIONS[says])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not output.exists()


# --- step by step ---


@pytest.mark.parametrize("method", ["taylor", "taylor_2nd", "fisher", "obs", "wanda", "magnitude"])
def test_each_criterion_scores_under_any_transform(method: str, session: gp.Session) -> None:
    plain = session.score(method)
    assert plain.values.shape == (len(session.plan(plain, 0.2).keep),)
    assert plain.method == method
    transformed = session.score(method, normalise="log", clip=(1, 99), temperature=1.0, tau="auto")
    np.testing.assert_array_equal(transformed.values, plain.values)  # importance stays; transforms act in plan()
    assert transformed.prior is not None
    assert method in repr(plain)
    assert "<table>" in plain._repr_html_()


def test_a_plan_made_step_by_step_is_the_commands(workspace: Workspace, session: gp.Session, tmp_path: Path) -> None:
    run = workspace.run("for its plan", "--enable_grad_norm", "--freeze_first_n_layers", "1", "--no_save_model")
    scores = session.score("taylor", normalise="log")
    plan = session.plan(scores, 0.4, ratio_of="prunable", freeze_first_n_layers=1)
    written = write_plan(tmp_path / "pruning_plan.json", plan)
    assert written.read_bytes() == (run / "analysis" / "pruning_plan.json").read_bytes()
    severities = [SEVERITIES.index(finding.severity) for finding in session.explain(plan)]
    assert severities
    assert severities == sorted(severities)


def test_many_plans_from_one_pass_and_many_models(session: gp.Session, tmp_path: Path) -> None:
    scores = session.score("obs")
    plans = [session.plan(scores, ratio, ratio_of="prunable") for ratio in (0.2, 0.4)]
    models = [session.prune(plan) for plan in plans]
    assert [model.num_parameters() for model in models] == [
        plan.architecture.total_params - plan.removed_params for plan in plans
    ]
    again = session.prune(plans[0])
    assert equal(dict(models[0].state_dict()), dict(again.state_dict()))  # the repair of the other left no trace
    for index, model in enumerate(models):
        folder = session.save(model, tmp_path / "deep" / str(index))
        reloaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
        assert reloaded.num_parameters() == model.num_parameters()


def test_check_measures_what_prune_delivers(session: gp.Session, plan: PruningPlan) -> None:
    from evaluation.perplexity import window_nll

    check = session.check(plan)
    windows = session._inner.judging
    model = session.prune(plan)
    nll = window_nll(model, windows.ids, batch_size=None, description="") / (windows.seq_len - 1)
    assert check.loss == pytest.approx(float(nll.mean()), rel=1e-3)  # prune() rounds to the stored bfloat16
    assert check.increase == pytest.approx(check.loss - check.dense_loss, abs=1e-9)
    assert check.num_windows == len(windows)
    assert session.check(plan) == check
    assert "nats/token" in repr(check)
    assert "<table>" in check._repr_html_()


def test_values_show_themselves(session: gp.Session, plan: PruningPlan) -> None:
    assert repr(plan).startswith(f"PruningPlan({plan.removed_params:,} of ")
    assert plan._repr_html_().count("<tr>") == 1 + plan.architecture.num_layers
    assert repr(session).startswith("model: llama, 3 layers, ")
    assert "<table>" in session._repr_html_()


def test_a_stock_plan_gives_a_model_of_the_familys_own_class(session: gp.Session, tmp_path: Path) -> None:
    plan = session.plan(session.score("wanda"), 0.2, target="stock")
    small = session.prune(plan, target="stock")
    assert type(small).__name__ == "LlamaForCausalLM"
    folder = session.save(small, tmp_path / "stock")
    assert not list(folder.glob("*.py"))
    with pytest.raises(gp.PlanError, match="--target stock cannot serve"):
        session.prune(session.plan(session.score("obs"), 0.4), target="stock")


def test_steps_refuse_in_one_line(session: gp.Session, plan: PruningPlan, workspace: Workspace, tmp_path: Path) -> None:
    scores = session.score("magnitude")
    wrong: list[tuple[type, str, Any]] = [
        (gp.UsageError, "importance_method='gradient' is none of taylor", lambda: session.score("gradient")),
        (gp.UsageError, "norm_method='l2' is none of log", lambda: session.score(normalise="l2")),
        (gp.UsageError, "needs 0 <= low < high", lambda: session.score(clip=(95, 5))),
        (gp.UsageError, "clip=5 is neither", lambda: session.score(clip=5)),  # type: ignore[arg-type]
        (gp.UsageError, "temperature: '-1' is not", lambda: session.score(temperature=-1)),
        (gp.UsageError, "plan(freeze=...): there is no such limit", lambda: session.plan(scores, freeze=1)),
        (gp.UsageError, "min_kv_heads: '0' is not", lambda: session.plan(scores, min_kv_heads=0)),
        (gp.UsageError, "ratio_of='all' is none of", lambda: session.plan(scores, ratio_of="all")),
        (gp.BudgetError, "0.99", lambda: session.plan(scores, 0.99)),
        (gp.UsageError, "output='x': open() takes", lambda: gp.open(workspace.model, output="x")),
        (gp.ModelError, "no such folder", lambda: gp.open(tmp_path / "nowhere")),
        (gp.DataError, "neither one of", lambda: gp.open(workspace.model, **SMALL, dataset="nowhere.txt")),
        (gp.ModelError, "save() takes the model that prune() returned", lambda: session.save(plan, tmp_path / "p")),
    ]
    for kind, says, step in wrong:
        with pytest.raises(gp.PruningError) as caught:
            step()
        assert type(caught.value) is kind, says
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


def test_plans_and_scores_of_another_model_are_refused(session: gp.Session, plan: PruningPlan, tmp_path: Path) -> None:
    from workspace import write_model

    other = gp.open(write_model(tmp_path / "other", "mistral"), dataset=None, say=gp.silent)
    for step in (session.prune, session.check, session.explain):
        with pytest.raises(gp.PlanError, match="another model"):
            step(other.plan(other.score("magnitude"), 0.2))
    with pytest.raises(gp.PlanError, match="another model"):
        session.plan(other.score("magnitude"), 0.2)


def test_without_text_magnitude_is_all_there_is(workspace: Workspace, tmp_path: Path) -> None:
    session = gp.open(workspace.model, dataset=None, say=gp.silent, device="cpu")
    plan = session.plan(session.score("magnitude"), 0.3)
    session.save(session.prune(plan), tmp_path / "model")
    for step in (
        lambda: session.score("obs"),
        lambda: session.check(plan),
        lambda: session.score("magnitude", temperature=1),
    ):
        with pytest.raises(gp.DataError, match="opened with dataset=None"):
            step()


def test_text_is_read_when_it_is_first_needed(workspace: Workspace, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt")
    session = gp.open(workspace.model, dataset=text, **SMALL)
    text.unlink()
    session.score("magnitude")
    with pytest.raises(gp.DataError):
        session.score("obs")


# --- saving ---


def test_a_model_trained_after_the_cut_is_proved_against_itself(
    session: gp.Session, plan: PruningPlan, tmp_path: Path
) -> None:
    """In float32, though the checkpoint is bfloat16: the proof is of what is written, and the model stays as it is."""
    small = session.prune(plan).requires_grad_(True).train()
    optimiser = torch.optim.SGD(small.parameters(), lr=0.05)
    ids = torch.randint(4, 90, (2, 12))
    for _ in range(3):
        small(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    before = state_of(small)
    session.save(small, tmp_path / "trained")
    after = state_of(small)
    for part in ("weights", "gradients", "flags", "modes", "hooks"):
        assert equal(before[part], after[part]), part
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "trained", trust_remote_code=True, dtype=torch.float32)
    small.eval()
    with torch.no_grad():
        difference = (reloaded(input_ids=ids).logits - small(input_ids=ids).logits).norm() / small(
            input_ids=ids
        ).logits.norm()
    assert difference < 2e-2  # bfloat16 keeps 8 bits


def test_saving_replaces_saved_models_alone(
    session: gp.Session, plan: PruningPlan, workspace: Workspace, tmp_path: Path
) -> None:
    small, folder = session.prune(plan), tmp_path / "model"
    session.save(small, folder)
    with pytest.raises(gp.OutputError, match="overwrite=True"):
        session.save(small, folder)
    session.save(small, folder, overwrite=True)
    with pytest.raises(gp.OutputError, match="is the model that is being pruned"):
        session.save(small, workspace.model, overwrite=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes", tmp_path / "notes" / "mine.txt"):
        with pytest.raises(gp.OutputError, match="not replaced"):
            session.save(small, place, overwrite=True)
    with pytest.raises(gp.PruningError, match=r"mine\.txt"):
        session.save(small, tmp_path / "notes" / "mine.txt" / "model")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"
