"""A machine that cannot load a saved model says nothing against the model; and what is proved is what is saved."""

import errno
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils as dynamic_modules
from test_verification import Saved, edit_python, no_python, plan_of, prune, swap_channels
from tiny_models import build
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from core.errors import NumericalError, VerificationError
from models import loading_afresh, verification
from models.family_table import family_of
from models.faults import fault_of_the_machine
from models.module_cache import own_module_cache
from models.rounding import check_finite, check_range, round_parameters
from models.verification import CHECKS, insist, not_verified

LLAMA = family_of("llama")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    model = build("llama")
    return prune(model, plan_of(model), tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def copy_of(sound: Saved, tmp_path: Path) -> Saved:
    shutil.copytree(sound.folder, tmp_path / "model")
    return sound._replace(folder=tmp_path / "model")


def os_error(number: int, name: str = "/elsewhere") -> OSError:
    return OSError(number, "words", name)


MACHINE: list[BaseException] = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    os_error(errno.ENOSPC),
    os_error(errno.EROFS),
    PermissionError(errno.EACCES, "Permission denied", "/home/nobody/.cache"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "/nonexistent/.cache"),
    ConnectionError("offline"),
    ModuleNotFoundError("No module named 'sklearn'", name="sklearn"),
]


@pytest.mark.parametrize("error", MACHINE, ids=lambda error: f"{type(error).__name__} {error}"[:40])
def test_a_machine_that_fails_leaves_the_model_where_it_is(
    copy_of: Saved, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    result = copy_of.verify()
    assert [check.name for check in result.checks] == ["head mapping"]
    assert list(result.not_run) == list(CHECKS[1:])
    assert result.line().startswith("warning: ")
    assert type(error).__name__ in result.line()
    assert result.to_json()["passed"] is None
    insist(result, copy_of.folder)
    assert copy_of.folder.exists()


def test_memory_that_ends_in_the_middle_leaves_the_other_checks(
    copy_of: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(verification, "left_padded", fail)
    result = copy_of.verify()
    assert list(result.not_run) == ["left padding", "attention"]
    assert result.line().startswith("verified: 4 checks")
    assert "not checked here: left padding, attention (MemoryError)" in result.line()
    assert result.to_json()["passed"] is True


def test_memory_for_a_second_model_is_asked_for(copy_of: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux kills a process that takes too much; no exception would say so."""
    monkeypatch.setattr(loading_afresh, "free_bytes", lambda: 1000)
    result = copy_of.verify()
    assert "bytes of memory and 1,000 are free" in result.unproved
    assert result.passed


def missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def misspelt_import(folder: Path) -> None:
    edit_python(folder, "from transformers import LlamaForCausalLM", "from transformers import LlamaForCausalLMs as No")


@pytest.mark.parametrize("spoil", [swap_channels, no_python, missing_weights, misspelt_import])
def test_a_model_that_is_wrong_is_set_aside(copy_of: Saved, spoil: Callable[[Path], None]) -> None:
    spoil(copy_of.folder)
    result = copy_of.verify()
    assert not result.passed
    with pytest.raises(VerificationError, match=r"model\.failed"):
        insist(result, copy_of.folder)


def test_a_missing_file_of_the_folder_is_the_models_fault(sound: Saved) -> None:
    inside = FileNotFoundError(errno.ENOENT, "No such file", str(sound.folder / "modeling_pruned.py"))
    assert fault_of_the_machine(inside, sound.folder, LLAMA) is None
    assert fault_of_the_machine(os_error(errno.ENOENT), sound.folder, LLAMA) is not None
    assert fault_of_the_machine(KeyError("weight"), sound.folder, LLAMA) is None
    wrapped = ValueError("cannot load")
    wrapped.__cause__ = os_error(errno.ENOSPC)
    assert fault_of_the_machine(wrapped, sound.folder, LLAMA) == "OSError: [Errno 28] words: '/elsewhere'"


def test_no_home_is_needed_and_none_is_touched(copy_of: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "modules")  # below a file nothing can be made
    monkeypatch.setattr(dynamic_modules, "HF_MODULES_CACHE", nowhere)
    path, modules, types = list(sys.path), set(sys.modules), dict(CONFIG_MAPPING._extra_content)
    result = copy_of.verify()
    assert result.passed
    assert result.not_run == {}
    assert nowhere == dynamic_modules.HF_MODULES_CACHE
    assert path == sys.path
    assert not [name for name in set(sys.modules) - modules if name.startswith("transformers_modules")]
    assert types == CONFIG_MAPPING._extra_content


def test_without_temporary_files_the_models_own_disk_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tempfile.mkdtemp

    def only_beside(**options: Any) -> str:
        if "dir" not in options:
            raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")
        return real(**options)

    monkeypatch.setattr(tempfile, "mkdtemp", only_beside)
    with own_module_cache(tmp_path):
        assert Path(dynamic_modules.HF_MODULES_CACHE).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_model_loaded_before_does_not_stand_in_the_proofs_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading one leaves the user's cache of such code on the import path, where it would be searched first."""
    cache = tmp_path / "cache"
    (cache / "transformers_modules").mkdir(parents=True)
    (cache / "transformers_modules" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [*sys.path, str(cache)])
    model = build("llama")
    assert prune(model, plan_of(model), tmp_path / "model").verify().loaded
    assert str(cache) in sys.path


def test_two_folders_of_one_name_are_two_models(tmp_path: Path) -> None:
    """Each proof imports its own folder's code, whatever was imported under that name before."""
    for name in ("first", "second"):
        model = build("llama")
        assert prune(model, plan_of(model), tmp_path / name / "model").verify().passed


def test_a_proof_that_was_not_made_says_why() -> None:
    result = not_verified("no memory")
    assert result.line() == "warning: the saved model could not be verified here (no memory); it was written completely"
    assert json.loads(json.dumps(result.to_json()))["not_run"] == dict.fromkeys(CHECKS, "no memory")


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", ["", "norm", "lm_head"])
def test_weights_wider_than_the_checkpoint_are_rounded_before_they_are_compared(
    tmp_path: Path, stored: torch.dtype, part: str
) -> None:
    """All of them (float32 tensors under a half-precision config.json), float32 norms only, or a float32 head only."""
    model = build("llama")
    for name, parameter in model.named_parameters():
        if part not in name:
            parameter.data = parameter.data.to(stored).float()
    assert not prune(model, plan_of(model), tmp_path / "unrounded", stored).verify().passed
    model = build("llama")
    round_parameters(model, stored)
    assert all(torch.equal(p, p.to(stored).float()) for p in model.parameters())
    assert prune(model, plan_of(model), tmp_path / "rounded", stored).verify().passed


def test_a_weight_beyond_float16_is_named_before_anything_changes() -> None:
    model = build("llama")
    model.model.norm.weight.data[0] = 70_000.0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(NumericalError, match=r"model\.norm\.weight holds 7e\+04, beyond float16's .* 65504.*bfloat16"):
        round_parameters(model, torch.float16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    check_range(model, torch.bfloat16)
    check_range(model.half(), torch.float16)  # already Inf: nothing that saving could lose


def test_a_checkpoint_beyond_float16_is_not_written(tmp_path: Path) -> None:
    model = build("llama")
    model.model.norm.weight.data[0] = 70_000.0
    with pytest.raises(NumericalError, match="65504"):
        prune(model, plan_of(model), tmp_path / "model", torch.float16)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_is_named(value: float) -> None:
    model = build("llama")
    check_finite(model)
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    with pytest.raises(
        NumericalError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN or Inf as float32; give weights"
    ):
        check_finite(model)


def test_weights_that_only_float16_cannot_hold_come_with_a_wider_dtype() -> None:
    model = build("llama")
    model.model.norm.weight.data[0] = 70_000.0
    with pytest.raises(NumericalError, match="too narrow for them, add --dtype bfloat16"):
        check_finite(model.half())
