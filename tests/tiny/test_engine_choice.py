"""Which engine works on a model: the first that has room in every process; what cannot work is one line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from workspace import Workspace, call

from core import ranks
from core.errors import UsageError
from models.loading import ModelSource, check_model
from run import before_after, engine_choice
from run.complete import complete
from run.engine_choice import EngineChoice, choose_engine


@pytest.fixture(scope="module")
def source(workspace: Workspace) -> ModelSource:
    return check_model(str(workspace.model))


def chosen(source: ModelSource, **options: Any) -> str:
    settings = complete({"base_model": source.path, "dataset": "pydoc", "run_evaluation": "ppl"} | options)
    return choose_engine(settings, source, torch.device("cpu"), torch.float32).name


def test_several_processes_share_what_none_of_them_holds(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work aside, the whole model W, or its eighth and twice the largest layer or what lies outside all of them."""
    shape = source.architecture
    monkeypatch.setattr(engine_choice, "ACTIVATIONS_BYTES", 0)
    fisher = {"importance_method": "fisher", "reconstruct": "none"}
    largest = max(shape.total_params - shape.layer_params, *(layer.total_params for layer in shape.layers))
    whole, part = 4 * shape.total_params, 4 * (shape.total_params // 8 + 2 * largest)
    assert part < whole
    free = {"first": whole, "second": whole}

    def both(value: Any, _what: str) -> list[Any]:
        return [engine_choice._Room(value.whole, value.part, free[rank]) for rank in free]

    monkeypatch.setattr(engine_choice.ranks, "gathered", both)
    monkeypatch.setattr(engine_choice, "free_bytes", lambda _device: 0)
    monkeypatch.setattr(ranks, "here", lambda: ranks.Ranks(0, 8, 0, 8))
    for second, expected in ((whole, "resident"), (whole - 1, "sharded"), (part, "sharded"), (part - 1, "streamed")):
        free["second"] = second
        assert chosen(source, **fisher) == expected
    assert chosen(source, importance_method="magnitude", reconstruct="none", run_evaluation="none") == "streamed"
    with pytest.raises(UsageError, match="--run_evaluation speed needs the whole of it"):
        chosen(source, run_evaluation="speed", **fisher)


@pytest.mark.parametrize("engine", ["streamed", "sharded"])
def test_a_note_names_the_engine_that_cannot_write(
    engine: str, source: ModelSource, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = complete({"base_model": source.path, "dataset": "pydoc"})
    session: Any = SimpleNamespace(settings=settings, streamed=True, engine=EngineChoice(engine, ""))
    assert before_after._measures(session) == {"ppl"}
    assert f"weights are {engine}, so what the models write is not measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--engine sharded deals weights out to several processes, and this is one: start it by torchrun"),
        (["--run_evaluation", "ppl,tasks"], "--run_evaluation tasks needs the whole model, and --engine sharded runs"),
        (["--low_memory"], "--low_memory is another word for --engine streamed, and --engine is sharded"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused_in_one_line(
    workspace: Workspace, tmp_path: Path, arguments: list[str], words: str
) -> None:
    output = tmp_path / "never"
    asked = [*workspace.base_arguments(), "--engine", "sharded", *arguments, "--output", str(output)]
    code, _, error = call(asked)
    assert code == 2
    assert len(error.splitlines()) == 1
    assert words in error
    assert not output.exists()
