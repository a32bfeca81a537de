"""``self``: what the dense model writes is what it expects, whatever the batch; texts and turns begin and end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from workspace import Workspace, call, notes_on, word_tokenizer

import global_pruning as gp
from calibration.self_text import (
    CALIBRATING,
    EVALUATING,
    JUDGING,
    Beginnings,
    Request,
    beginnings,
    written_together,
    written_windows,
)
from core.errors import NumericalError
from core.precision import in_bfloat16
from core.say import heard_notes
from run import self_windows

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
BOS, EOS = 1, 2
PLAIN = Beginnings(((BOS,),), (), (EOS,), 97)


def rows(model: Any, begin: Beginnings = PLAIN, count: int = 3, length: int = 24, **how: Any) -> np.ndarray:
    return written_windows(model, begin, count, length, how.pop("seed", 0), how.pop("purpose", CALIBRATING), **how)


@torch.no_grad()
def test_every_token_is_drawn_from_what_the_model_expects_there(family_model: Any) -> None:
    """Against a forward pass over the whole row, without a cache: u lies in the token's share of [0, 1)."""
    found = rows(family_model)
    numbers = np.random.default_rng([0, 0]).random((3, 24, 2))[:, :, 0]
    expected = family_model(input_ids=torch.from_numpy(found), use_cache=False).logits.double().softmax(-1).cumsum(-1)
    for row, probabilities, u in zip(found, expected.numpy(), numbers, strict=True):
        assert row[0] == BOS
        for t in range(1, 24):
            if row[t - 1] == EOS:
                assert row[t] == BOS
                continue
            token, total = row[t], probabilities[t - 1]
            assert (total[token - 1] if token else 0.0) - 1e-5 <= u[t] <= total[token] + 1e-5


def test_rows_depend_on_the_seed_and_what_they_are_for_alone(llama: Any) -> None:
    llama.train()
    found = rows(llama)
    assert llama.training
    assert np.array_equal(rows(llama, count=5, batch_size=2)[:3], found)
    assert not np.array_equal(rows(llama, seed=1), found)
    others = [rows(llama, purpose=purpose) for purpose in (EVALUATING, JUDGING)]
    written = {tuple(row) for part in (found, *others) for row in part.tolist()}
    assert len(written) == 9


@pytest.mark.parametrize("batch_size", [None, 4])
def test_rows_of_several_lengths_are_written_together(llama: Any, batch_size: int | None) -> None:
    """As many tokens as the longest of a batch has; each row is what it would be alone."""
    asked = [(5, 9, CALIBRATING), (2, 24, EVALUATING), (1, 16, JUDGING)]
    requests = [Request(PLAIN, count, length, 3, purpose) for count, length, purpose in asked]
    for found, (count, length, purpose) in zip(written_together(llama, requests, batch_size), asked, strict=True):
        assert np.array_equal(found, rows(llama, count=count, length=length, seed=3, purpose=purpose))


def test_a_text_ends_and_another_begins(llama: Any) -> None:
    """Half of the vocabulary ends a text; a beginning is one word of two, or a turn of three tokens."""
    begin = Beginnings(((10,), (11,)), ((BOS, 20, 21),), tuple(range(30, 97)), 97)
    found = rows(llama, begin, count=6, length=40)
    starts, seen = (*begin.plain, *begin.turns), []
    for row in found.tolist():
        place, begins = 0, True
        while place < len(row):
            if begins:
                seen.append(next(s for s in starts if s[: len(row) - place] == tuple(row[place : place + len(s)])))
            place += len(seen[-1]) if begins else 1
            begins = not begins and row[place - 1] in begin.ends
    counts = {start: seen.count(start) for start in starts}
    assert min(counts.values()) > len(seen) / 8
    assert counts[BOS, 20, 21] > len(seen) / 3


def test_a_tokenizer_says_how_texts_begin() -> None:
    tokenizer = word_tokenizer()
    assert beginnings(tokenizer, [5, 200], 97) == Beginnings(((BOS,),), (), (EOS, 5), len(tokenizer))
    tokenizer.chat_template = "{% for m in messages %}<s> ba {{ m.role }} {% endfor %}{{ '' if add_generation_prompt }}"
    begin = beginnings(tokenizer, None, 97)
    assert set(begin.turns) == {(BOS, 4, 3)}
    assert begin.within(6) == begin
    assert begin.plain == ((BOS,),)
    with heard_notes() as notes:
        assert begin.within(5) == begin._replace(turns=())
    assert "takes 3 tokens or more, over half of a window of 5" in notes[0]
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    assert beginnings(tokenizer, None, 97).turns == ()
    tokenizer.bos_token = None
    usual = beginnings(tokenizer, None, 97).plain  # no word of it has a capital
    assert usual == tuple((number,) for number in (1, *range(4, len(tokenizer))))
    tokenizer.chat_template = "{{ '' }}"
    assert beginnings(tokenizer, None, 97).turns == ()
    english = AutoTokenizer.from_pretrained(DEMO)
    english.bos_token = None
    words = [english.decode(ids).strip() for ids in beginnings(english, None, 4096).plain]
    assert {"The", "A", "This"} <= set(words)
    assert all(word.istitle() for word in words)


def test_a_bos_that_begins_turns_begins_no_other_text() -> None:
    """Then what stood between two texts in pretraining does, or a usual first token."""
    tokenizer = word_tokenizer()
    template = "{% for m in messages %}<s> ba {{ m.role }} {% endfor %}{{ '<s>' if add_generation_prompt }}"
    tokenizer.chat_template = template
    usual = beginnings(tokenizer, None, 97)
    assert set(usual.turns) == {(BOS, 4, 3, BOS)}
    assert (BOS,) not in usual.plain
    assert len(usual.plain) > 1
    tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
    between = (tokenizer.pad_token_id,)
    assert beginnings(tokenizer, None, 97).plain == (between,)
    assert between not in beginnings(tokenizer, None, between[0]).plain  # the embedding has no row for it
    tokenizer.chat_template = None
    assert beginnings(tokenizer, None, 97).plain == ((BOS,),)
    tokenizer.bos_token = None
    assert beginnings(tokenizer, None, 97).plain == (between,)


def test_logits_that_are_no_numbers_are_refused(llama: Any) -> None:
    llama.lm_head.weight[5] = torch.nan
    with pytest.raises(NumericalError, match="--dataset self"):
        rows(llama)


def test_a_run_on_a_mixture(workspace: Workspace, tmp_path: Path) -> None:
    """Both texts calibrate and both are evaluated; a second run finds what the model wrote, and equals the first."""
    arguments = ["--dataset", f"{workspace.text}:0.7,self:0.3", "--num_samples", "7", "--eval_samples", "3"]
    arguments += ["--reconstruct", "least_squares", "--cache_dir", str(tmp_path)]
    runs = [workspace.run(name, *arguments) for name in ("first", "second")]
    records = [json.loads((run / "run.json").read_text(encoding="utf-8")) for run in runs]
    assert [r["facts"]["cache"]["text for calibration"] for r in records] == ["miss", "hit"]
    assert records[0]["windows"] == records[1]["windows"]
    windows = records[0]["windows"]
    assert windows["calibration"]["source"].startswith("5 windows: paragraphs of ")
    assert "; 2 windows: text that the dense model wrote itself" in windows["calibration"]["source"]
    assert set(windows) == {"calibration", f"evaluation {workspace.text}", "evaluation self"}
    plans = [(run / "analysis" / "pruning_plan.json").read_bytes() for run in runs]
    assert plans[0] == plans[1]
    sample = (runs[0] / "analysis" / "calibration_sample.txt").read_text(encoding="utf-8")
    assert sample.count("=== window ") == 2
    assert sample.count("<s>") >= 2
    assert "analysis/calibration_sample.txt" in {file["path"] for file in records[0]["files"]}
    card = (runs[0] / "model" / "README.md").read_text(encoding="utf-8")
    assert "windows: text that the dense model wrote itself" in card
    assert str(workspace.root) not in card


@pytest.mark.parametrize(("wide", "written_in"), [(32, torch.bfloat16), (4096, torch.float32)])
def test_a_model_stored_in_half_precision_writes_in_it_where_the_cpu_is_faster_so(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, wide: int, written_in: torch.dtype
) -> None:
    """Measured is in float32 all the same, with the weights that there were."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr("core.precision.WIDE", wide)
    session = gp.open(str(workspace.model), dataset="self", num_samples=3, seq_len=16, device="cpu", cache_dir=None)
    before = {name: values.clone() for name, values in session.model.state_dict().items()}
    seen: list[torch.dtype] = []
    session.model.lm_head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    session.score("magnitude")
    session._inner.write_windows()
    assert seen[0] == written_in
    after = session.model.state_dict()
    assert all(
        torch.equal(after[name], values) and after[name].dtype == values.dtype for name, values in before.items()
    )


def test_weights_of_more_digits_than_half_precision_has_stay_as_they_are(llama: Any) -> None:
    with in_bfloat16(llama, True):
        assert llama.dtype == torch.float32
    for values in llama.parameters():
        values.data = values.data.bfloat16().float()
    with in_bfloat16(llama, False):
        assert llama.dtype == torch.float32
    llama.lm_head.weight[5] = torch.nan
    with in_bfloat16(llama, True):
        assert llama.dtype == torch.float32
    llama.lm_head.weight[5] = 0.5
    with in_bfloat16(llama, True):
        assert {values.dtype for values in llama.parameters()} == {torch.bfloat16}
    assert {values.dtype for values in llama.parameters()} == {torch.float32}


def test_evaluation_on_what_the_model_writes_does_not_depend_on_the_seed(workspace: Workspace) -> None:
    arguments = ["--eval_datasets", "self", "--importance_method", "magnitude", "--dry_run", "--seed"]
    runs = [workspace.run(f"seed{seed}", *arguments, seed) for seed in "01"]
    first, second = (json.loads((run / "run.json").read_text(encoding="utf-8"))["windows"] for run in runs)
    assert first == second
    assert (list(first), first["evaluation self"]["num_windows"]) == (["evaluation self"], 8192 // 32)
    assert not (runs[0] / "analysis" / "calibration_sample.txt").exists()


def test_written_windows_are_shorter_than_those_that_are_read(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token of a window takes as long as a pass. As many windows as asked for, and as many as a text elsewhere."""
    monkeypatch.setattr("run.self_windows.MOST_TOKENS", 24)
    texts = ["--eval_datasets", f"{workspace.text},self", "--importance_method", "magnitude", "--dry_run"]
    runs = workspace.root / "few", workspace.run("usual", *texts)
    code, _, error = call([*workspace.base_arguments(), *texts, "--eval_samples", "3", "--output", str(runs[0])])
    assert code == 0
    assert "note: self: evaluation reads windows of 24 tokens, not 32," in error
    found = [json.loads((run / "run.json").read_text(encoding="utf-8"))["windows"] for run in runs]
    assert [windows["evaluation self"]["seq_len"] for windows in found] == [24, 24]
    assert [windows["evaluation self"]["num_windows"] for windows in found] == [3, 8192 // 24]
    assert found[0][f"evaluation {workspace.text}"]["seq_len"] == 32


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What for, each time that a model writes."""
    found: list[list[str]] = []

    def watched(model: Any, requests: list[Request], size: int | None) -> list[np.ndarray]:
        found.append([request.purpose for request in requests])
        return written_together(model, requests, size)

    monkeypatch.setattr(self_windows, "written_together", watched)
    return found


def test_on_a_gpu_all_texts_are_written_at_once(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, written: list[list[str]]
) -> None:
    options = ["--dataset", "self", "--seq_len", "16", "--eval_seq_len", "16", "--protect", "measured", "--dry_run"]
    plans = []
    for name, at_once in (("one by one", False), ("at once", True)):
        monkeypatch.setattr(self_windows, "all_at_once", lambda _device, at_once=at_once: at_once)
        plans.append((workspace.run(name, *options) / "analysis" / "pruning_plan.json").read_bytes())
    assert plans[0] == plans[1]
    assert written == [[CALIBRATING], [JUDGING], [EVALUATING], [CALIBRATING, JUDGING, EVALUATING]]


def test_a_session_writes_what_to_judge_by_when_it_judges(workspace: Workspace, written: list[list[str]]) -> None:
    session = gp.open(workspace.model, dataset="self", num_samples=3, seq_len=16, cache_dir="none", say=gp.silent)
    plan = session.plan(session.score("wanda"), ratio=0.3, ratio_of="prunable")
    assert written == [[CALIBRATING]]
    first = session.check(plan)
    assert first == session.check(plan)
    assert written == [[CALIBRATING], [JUDGING]]


def test_a_text_without_a_window_is_refused(workspace: Workspace) -> None:
    mixture = f"{workspace.text}:0.99,self:0.01"
    code, _, error = call([*workspace.base_arguments(), "--dataset", mixture, "--output", str(workspace.root / "x")])
    assert (code, error.count("\n")) == (2, 1)
    assert "--num_samples 6 leaves no window for self" in error


def test_a_session_on_what_the_model_writes(workspace: Workspace) -> None:
    session = gp.open(
        workspace.model, dataset="self", num_samples=4, seq_len=16, device="cpu", cache_dir="none", say=gp.silent
    )
    plan = session.plan(session.score("fisher"), ratio=0.3, ratio_of="prunable")
    assert session.check(plan).num_windows == 16
    assert session.prune(plan).num_parameters() < session.model.num_parameters()


def test_a_replayed_plan_finds_what_was_written(workspace: Workspace, tmp_path: Path) -> None:
    """Though it measures nothing that the cache could keep."""
    plan = workspace.run("planned", "--dry_run", "--run_evaluation", "none") / "analysis" / "pruning_plan.json"
    arguments = ["--plan", str(plan), "--dataset", "self", "--recover", "distill", "--recover_tokens", "600"]
    arguments += ["--run_evaluation", "none", "--no_verify", "--cache_dir", str(tmp_path)]
    runs = [workspace.run(name, *arguments) for name in ("replayed", "replayed again")]
    found = [json.loads((run / "run.json").read_text(encoding="utf-8"))["facts"]["cache"] for run in runs]
    assert [cache["text for calibration"] for cache in found] == ["miss", "hit"]
    assert notes_on("--plan", str(plan), "--run_evaluation", "none", "--cache_dir", str(tmp_path)) == [
        "--cache_dir has no effect with --plan, where there is nothing to keep"
    ]
