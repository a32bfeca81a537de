"""``--gpu_memory``: a cap on what tensors take of a GPU. No GPU is needed: what torch would be told is recorded."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build
from workspace import Workspace, call

import global_pruning as gp
from cli.options import parse_options
from core.errors import UsageError
from core.memory import bytes_of, capped, free_gpu_bytes
from importance import passes
from importance.passes import layers_to_recompute
from models.architecture import architecture_of
from models.family_table import family_of
from run.option_rules import idle_notes
from run.session import check_gpu_memory

CUDA = torch.device("cuda")


class Card:
    """A GPU of 80 GB, 10 of which others use; ``fraction`` is what this process may take."""

    total, free, used, fraction = 80 * 10**9, 70 * 10**9, 0, 1.0

    def set_fraction(self, fraction: float, device: torch.device) -> None:
        self.fraction = fraction


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    found = Card()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (found.free, found.total))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: found.used)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: found.used)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: found.fraction)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", found.set_fraction)
    return found


def test_sizes_are_read_and_others_refused_in_one_line() -> None:
    assert [bytes_of(size) for size in ("17GB", "1.5gb", "500KB", "0.001TB")] == [
        *(17 * 10**9, 15 * 10**8, 500_000, 10**9),
    ]
    for size in ("17", "GB", "0GB", "-1GB", "1 GB", "17GiB", "1e3MB", "", "nanGB"):
        with pytest.raises(UsageError, match="is not a size above 0 in KB, MB, GB or TB"):
            bytes_of(size)


def test_a_cap_is_kept_and_what_was_before_is_back_also_after_an_exception(card: Card) -> None:
    with capped(CUDA, 16 * 10**9):
        assert card.fraction == pytest.approx(0.2)
        assert free_gpu_bytes(CUDA) == pytest.approx(16 * 10**9, abs=1)
        card.used = 10 * 10**9
        assert free_gpu_bytes(CUDA) == pytest.approx(6 * 10**9, abs=1)
    assert card.fraction == 1.0
    card.fraction = 0.1  # set by the caller's own program, and stricter
    seen = []
    with suppress(RuntimeError), capped(CUDA, 4 * 10**9):
        seen.append(card.fraction)
        raise RuntimeError
    assert [*seen, card.fraction] == [0.05, 0.1]
    with capped(CUDA, 16 * 10**9):
        assert card.fraction == 0.1


@pytest.mark.parametrize(("device", "most"), [(CUDA, None), (torch.device("cpu"), 10**9)])
def test_nothing_is_touched_without_a_cap_or_without_a_gpu(card: Card, device: torch.device, most: int | None) -> None:
    card.fraction = 0.7
    with capped(device, most):
        assert card.fraction == 0.7


def test_more_than_the_card_has_is_no_cap(card: Card) -> None:
    with capped(CUDA, 200 * 10**9):
        assert card.fraction == 1.0


def test_fewer_activations_are_kept_under_a_cap(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three layers of 7 * 64 + 4 * 24 = 544 values, 4 bytes each: 2,176 bytes a token; logits 2 * 97 * 4 = 776.

    At 100 tokens a cap of 750,000 bytes leaves 0.7 * (750,000 - 77,600) = 470,680: two layers of 217,600.
    """
    model = build("llama")
    architecture = architecture_of(model, family_of("llama"))
    monkeypatch.setattr(passes, "free_gpu_bytes", lambda _device: free_gpu_bytes(CUDA))
    assert layers_to_recompute(model, architecture, 100) == 0
    with capped(CUDA, 750_000):
        assert layers_to_recompute(model, architecture, 100) == 1
    with capped(CUDA, 1):
        assert layers_to_recompute(model, architecture, 100) == 3


def test_a_cap_below_the_weights_is_refused_before_they_are_loaded() -> None:
    def asked(size: str) -> Any:
        return parse_options(["--base_model", "demo", "--gpu_memory", size]).settings

    source: Any = type("Source", (), {"architecture": architecture_of(build("llama"), family_of("llama"))})
    weights = source.architecture.total_params * 2
    with pytest.raises(UsageError, match=r"--gpu_memory 1KB is no more than the weights take, [\d.]+ kB in bfloat16"):
        check_gpu_memory(asked("1KB"), source, CUDA, torch.bfloat16)
    check_gpu_memory(asked(f"{weights / 1000 + 1}KB"), source, CUDA, torch.bfloat16)
    check_gpu_memory(asked("1KB"), source, torch.device("cpu"), torch.bfloat16)


def test_it_is_an_option_like_any_other(workspace: Workspace, tmp_path: Path) -> None:
    """Recorded, said where it cannot act, and refused with one line in the shell and in Python."""
    folder = workspace.run("capped", "--gpu_memory", "17gb", "--dry_run", "--run_evaluation", "none")
    assert json.loads((folder / "run.json").read_text())["asked"]["gpu_memory"] == "17GB"
    command = parse_options(["--base_model", "demo", "--gpu_memory", "17GB", "--device", "cpu"])
    assert idle_notes(command.settings, command.given) == ["--gpu_memory has an effect on a GPU only"]
    code, _, error = call([*workspace.base_arguments(), "--gpu_memory", "17", "--output", str(tmp_path / "x")])
    assert (code, len(error.splitlines())) == (2, 1)
    assert "'17' is not a size above 0" in error
    with pytest.raises(gp.UsageError, match="'17' is not a size"):
        gp.open("demo", dataset="pydoc", gpu_memory="17")


def test_the_console_says_what_the_run_keeps_within(workspace: Workspace) -> None:
    session = gp.open(str(workspace.model), dataset=str(workspace.text), seq_len=16, device="cpu", gpu_memory="2GB")
    assert repr(session).splitlines()[0].endswith("on cpu in float32 (--gpu_memory 2GB has an effect on a GPU only)")
