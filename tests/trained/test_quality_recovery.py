"""What the comparison prunes in rounds, trains and lets the model write: on tiny models, against other formulas."""

from typing import Any

import numpy as np
import pytest
import torch
from test_quality_benchmark import IDS, case_of, logits
from tiny_models import build, random_plan

from benchmarks.baselines import ranked_keep
from benchmarks.pretrained import default_folder
from benchmarks.quality import trained
from benchmarks.quality.case import Case, pruned
from benchmarks.quality.drawing import Texts
from benchmarks.quality.methods import GISP_STEP, METHODS
from benchmarks.quality.models import PRETRAINED, folder_of, known_models
from benchmarks.quality.next_token import NextToken
from benchmarks.quality.stream import layers_restored, silence
from benchmarks.quality.texts import CONFIRMATION, DEVELOPMENT
from benchmarks.quality.trained import put_back
from calibration.self_text import CALIBRATING, Beginnings
from core.groups import MLP
from core.plan import PruningPlan
from models.narrow import empty_narrow_model
from pruning.recovery import distill
from pruning.surgery import operate


def kept(case: Case, method: str, ratio: float) -> np.ndarray:
    with pruned(METHODS[method], case, ratio) as keep:
        return keep


# Rounds


def test_gisp_ranks_importance_over_the_mean_of_its_kind() -> None:
    """One round: of all groups those leave whose share is least, but for KV groups, which may cost more than is due."""
    case = case_of("llama")
    keep = kept(case, "gisp", GISP_STEP)
    importance, groups = case.measured("taylor", "sum"), case.architecture.groups
    channels = groups.kind == MLP
    assert (~keep[channels]).sum() >= 3
    assert importance[channels & ~keep].max() < importance[channels & keep].min()
    share = importance / np.where(channels, importance[channels].mean(), importance[~channels].mean())
    order = np.argsort(share)
    assert np.array_equal(keep, ranked_keep(case.architecture, order, GISP_STEP))


def test_gisp_measures_again_after_each_round_and_takes_nothing_back() -> None:
    case = case_of("llama")
    larger = kept(case, "gisp", 6.5 * GISP_STEP)
    assert [name for name in case.memory if name.startswith("gisp")] == [f"gisp {round_}" for round_ in range(7)]
    smaller = kept(case, "gisp", 3 * GISP_STEP)
    assert not (larger & ~smaller).any()
    first, later = (case.memory[f"gisp {round_}"][0] for round_ in (0, 4))
    assert first.all()
    assert (later == 0).any()  # what is gone
    assert np.array_equal(kept(case_of("llama"), "gisp", 3 * GISP_STEP), smaller)


# Training


def cut(case: Case, plan: PruningPlan) -> Any:
    wide = build("llama-biased-tied-mha")
    return operate(wide, empty_narrow_model(wide, case.family, plan), case.family, plan)


def test_what_a_narrow_model_learns_goes_back_to_where_it_was_cut_from() -> None:
    case = case_of("llama-biased-tied-mha")
    before, plan = logits(case.model), random_plan(case.architecture)
    narrow = cut(case, plan)
    with torch.no_grad():
        for parameter in narrow.get_submodule(case.family.layers).parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with layers_restored(case.model, case.family):
        silence(case.model, case.family, case.architecture, plan.keep)
        put_back(narrow, case.model, case.family, plan)
        assert torch.allclose(logits(case.model), logits(narrow), atol=1e-4)
    assert torch.equal(logits(case.model), before)


def test_lora_trains_on_the_next_token_of_the_text() -> None:
    model = build("llama")
    trainer = object.__new__(NextToken)
    loss = trainer.compute_loss(model, {"input_ids": IDS})
    assert float(loss) == pytest.approx(float(model(input_ids=IDS, labels=IDS).loss), rel=1e-5)


def test_recoveries_train_on_what_the_dense_model_gave_them() -> None:
    """Text is drawn before anything is pruned: the model may have to write it."""
    case, seen = case_of("llama"), []
    dense, draw = logits(case.model), case.training

    def drawing() -> Any:
        seen.append(torch.equal(logits(case.model), dense))
        assert draw is not None
        return draw()

    case.training = drawing
    for ratio in (0.25, 0.4):
        kept(case, "ours+blocks", ratio)
    assert seen == [True]


def test_blocks_leave_half_of_the_tokens_or_more_to_the_distillation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of 20,000 pays for 3 steps of 3,072; of 1,000,000 for more than the usual 100, which take 307,200."""
    seen: list[int] = []
    monkeypatch.setattr(trained, "recover_blocks", lambda *given: seen.append(given[-1].steps))
    monkeypatch.setattr(distill, "distil", lambda *given: seen.append(given[-1].tokens))
    case = case_of("llama")
    plan = random_plan(case.architecture)
    for tokens in (20_000, 1_000_000):
        assert case.training is not None
        training = case.training()._replace(tokens=tokens)
        trained.blocks_and_distilled(None, None, case, plan, training)
    assert seen == [3, 20_000 - 3 * 3072, 100, 1_000_000 - 307_200]


# Text and models


def test_what_the_model_writes_serves_one_purpose() -> None:
    texts = Texts(build("llama"), None, Beginnings(((1,),), (), (2,), 97), 12)
    parts = [texts.self_written(part, 4).ids for part in (DEVELOPMENT, CONFIRMATION)]
    rows = [tuple(row) for ids in (*parts, texts.calibration("self", 4, 0).ids) for row in ids.tolist()]
    assert len(rows) == len(set(rows)) == 12
    assert np.array_equal(texts.self_written(CONFIRMATION, 2).ids, parts[1][:2])
    assert np.array_equal(texts.calibration("self", 4, 0).ids, texts.written(4, CALIBRATING, 0).ids)


def test_a_recovery_trains_on_what_the_model_writes_for_it() -> None:
    """100 windows' worth of tokens: 25 different ones, each read 4 times, and 16 held out; none of them calibrates."""
    texts = Texts(build("llama"), None, Beginnings(((1,),), (), (2,), 97), 12)
    training = texts.training("self", 0, 12 * 100)
    assert training.tokens == 1200
    assert np.array_equal(training.text, np.tile(training.text[:25], (4, 1)))
    every = [tuple(row) for row in (*training.text[:25].tolist(), *training.check.tolist())]
    assert len(every) == len(set(every)) == 25 + 16
    assert set(every).isdisjoint(map(tuple, texts.calibration("self", 41, 0).ids.tolist()))


def test_the_pretrained_checkpoint_is_one_of_the_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    default_folder().mkdir(parents=True)
    (default_folder() / "config.json").write_text("{}")
    assert folder_of(PRETRAINED) == known_models()[PRETRAINED] == default_folder()
    assert set(known_models()) == {"demo", "gemma3", "qwen2", PRETRAINED}
