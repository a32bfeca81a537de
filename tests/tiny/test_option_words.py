"""What options come to before anything runs: defaults, notes on those that cannot act, refused remedies."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from workspace import Workspace, notes_on

import global_pruning as gp
from calibration.texts import NAMED
from cli.options import parse_options
from core.names import DATASETS, SELF
from core.transforms import Remedy
from run.complete import complete
from run.option_rules import refusal
from run.settings import DEFAULT_TEXT


def test_default_output_is_named_after_what_was_asked() -> None:
    asked = ["--base_model", "org/name-7B", "--temperature", "1", "--tau", "inf", "--dataset", "a/b.txt"]
    output = parse_options(asked).settings.output.output
    assert output == Path("results/org--name-7B/obs_0.2_T1_tauinf_a--b.txt")
    asked = ["--base_model", "demo", "--dataset", "c4", "--importance_method", "fisher"]
    assert parse_options(asked).settings.output.output == Path("results/demo/fisher_0.2_c4")


def test_what_is_evaluated_elsewhere_unless_told_otherwise() -> None:
    def elsewhere(**options: Any) -> str:
        return complete({"base_model": "demo"} | options).evaluation.eval_elsewhere

    assert elsewhere(dataset="pydoc") == "pycode"
    assert elsewhere() == elsewhere(dataset="pycode") == "pydoc"
    assert elsewhere(eval_datasets=["c4"]) == "none"
    assert elsewhere(eval_datasets=["c4"], eval_elsewhere="ptb") == "ptb"


def test_options_that_cannot_act_are_said(workspace: Workspace) -> None:
    given = ["--norm_method", "sqrt", "--tau", "auto", "--gradient_reduction", "sum", "--importance_method", "wanda"]
    notes = notes_on(*given)
    assert notes == [
        "--norm_method needs --enable_grad_norm",
        "--tau needs --temperature above 0",
        "--gradient_reduction works with taylor and taylor_2nd only",
    ]
    assert notes_on("--enable_grad_norm", "--norm_method", "sqrt") == []


def test_datasets_that_options_name_are_those_that_can_be_read() -> None:
    assert set(DATASETS) == {*NAMED, SELF}


@pytest.mark.parametrize(
    ("arguments", "remedy", "word"),
    [
        (["--epsilon", "0.3"], Remedy(max_block_ratio=0.5), "--epsilon"),
        (["--temperature", "1.0"], Remedy(temperature=2.0), None),
    ],
)
def test_whether_a_remedy_would_be_refused(arguments: list[str], remedy: Remedy, word: str | None) -> None:
    said = refusal(parse_options(["--base_model", "demo", *arguments]).settings, remedy)
    assert (said is None) == (word is None), said
    assert (word or "") in (said or "")


def test_a_run_that_names_no_text_calibrates_on_the_models_own_too() -> None:
    settings = complete({"base_model": "demo"})
    assert settings.calibration.dataset == "wikitext2,self"
    assert settings.evaluation.eval_datasets == ("wikitext2", "self")
    assert settings.if_streamed is not None
    assert settings.if_streamed.calibration.dataset == "wikitext2"
    assert settings.if_streamed.evaluation.eval_datasets == ("wikitext2",)
    assert settings.if_streamed.needs_whole_model is None


@pytest.mark.parametrize(
    "options", [{"engine": "streamed"}, {"engine": "sharded"}, {"low_memory": True}, {"importance_method": "magnitude"}]
)
def test_where_the_model_cannot_or_need_not_write_text_is_read_alone(options: dict[str, object]) -> None:
    settings = complete({"base_model": "demo"} | options)
    assert (settings.calibration.dataset, settings.if_streamed) == ("wikitext2", None)


def test_a_text_that_is_named_is_the_only_one() -> None:
    settings = complete({"base_model": "demo", "dataset": "wikitext2"})
    assert (settings.calibration.dataset, settings.if_streamed) == ("wikitext2", None)


def test_python_names_the_same_default_text() -> None:
    assert inspect.signature(gp.open).parameters["dataset"].default == DEFAULT_TEXT
