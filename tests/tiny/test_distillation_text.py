"""What a distillation trains on and is judged by: windows of every text, by its share."""

from typing import Any

import numpy as np
import pytest
import torch
from workspace import Workspace

import global_pruning as gp
from calibration import training_windows
from core.errors import DataError
from core.sources import Source
from run.distillation_windows import Divided, distillation_windows, divided, times_read
from run.self_windows import written_to_distil


def test_training_windows_share_no_token_with_those_that_judge(workspace: Workspace) -> None:
    tokenizer = build_tokenizer(workspace)
    train, check = training_windows(str(workspace.text), tokenizer, 1000, 16, 16, 0)
    assert len(check) == 16
    assert 100 < len(train) < 1000
    rows = {tuple(row) for row in train.ids}
    assert len(rows) == len(train)
    assert not rows & {tuple(row) for row in check.ids}
    few, held = training_windows(str(workspace.text), tokenizer, 5, 16, 16, 0)
    assert (len(few), len(held)) == (5, 16)
    with pytest.raises(DataError, match="training needs two windows of 2000 tokens"):
        training_windows(str(workspace.text), tokenizer, 5, 16, 2000, 0)


def build_tokenizer(workspace: Workspace) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(workspace.model)


def test_every_text_that_calibrates_is_distilled_on_by_its_share(workspace: Workspace) -> None:
    """The model writes anew what it is to learn from and be judged by, and each of its windows is read four times."""
    session = gp.open(workspace.model, dataset=f"{workspace.text},self", num_samples=16, seq_len=16, say=gp.silent)
    session.score("taylor")
    inner = session._inner
    train, check = distillation_windows(inner, 16 * 60)
    own = [tuple(row) for row in written_to_distil(inner, 8 + 8)]
    assert [tuple(row) for row in train[-30:]] == (own[:8] * 4)[:30]
    assert [tuple(row) for row in check[-8:]] == own[8:]
    assert len(check) == 16
    assert not {tuple(row) for row in train} & {tuple(row) for row in check}
    assert inner.written is not None
    assert not {tuple(row) for row in inner.written.ids} & set(own)


def test_a_short_text_keeps_its_share_and_is_read_again() -> None:
    sources = (Source("short", 0.5), Source("long", 0.5))
    lengths = {"short": 3, "long": 100}

    def read(name: str, count: int, held: int) -> Divided:
        first = 1000 * (name == "long")
        return np.arange(first, first + min(count, lengths[name]))[:, None], np.full((held, 1), -1)

    train, check = divided(sources, 20 * 8, 8, read, lambda count: np.empty((count, 1)), 4)
    assert train[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, *range(1000, 1010)]
    assert len(check) == 16
    alone, _ = divided(sources[:1], 20 * 8, 8, read, lambda count: np.empty((count, 1)), 4)
    assert alone[:, 0].tolist() == [0, 1, 2]


def test_own_text_fills_up_what_a_short_text_cannot_give() -> None:
    """It is read for four times at most, and the rest of its share is written."""
    sources = tuple(Source(name, 1 / 3) for name in ("short", "self", "long"))

    def read(name: str, count: int, held: int) -> Divided:
        first = 1000 * (name == "long")
        return np.arange(first, first + min(count, 100 if first else 3))[:, None], np.full((held, 1), -1)

    train, check = divided(sources, 60 * 8, 8, read, lambda count: np.arange(2000, 2000 + count)[:, None], 4)
    short, own, long = np.split(train[:, 0], [12, 40])
    assert (short.tolist(), long.tolist()) == ([0, 1, 2] * 4, [*range(1000, 1020)])
    assert own.tolist() == [*range(2000, 2007)] * 4  # 20 of its own share, 8 of the other's
    assert not set(own) & set(check[:, 0])
    assert len(check) == 16


def test_own_text_is_read_once_where_writing_costs_little() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 1)
    assert [times_read(cpu, 10**8), times_read(gpu, 10**8), times_read(gpu, 7 * 10**9)] == [4, 1, 4]
    train, check = divided(
        (Source("self", 1.0),), 40, 8, lambda *_: (np.empty(0), np.empty(0)), lambda count: np.arange(count)[:, None], 1
    )
    assert (train[:, 0].tolist(), check[:, 0].tolist()) == ([*range(5)], [*range(5, 21)])


def test_the_model_writes_for_a_distillation_what_calibration_could_not_divide(workspace: Workspace) -> None:
    session = gp.open(workspace.model, dataset="self", num_samples=1, seq_len=16, say=gp.silent)
    session.score("taylor")
    train, check = distillation_windows(session._inner, 16 * 6)
    assert (len(train), len(check)) == (6, 16)
