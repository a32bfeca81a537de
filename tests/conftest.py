"""Every test: no network, no cache, libraries that keep to the cores they are given. Imports no torch by itself."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
os.environ["GLOBAL_PRUNING_CACHE"] = "none"  # neither the user's cache nor an earlier test has a say

from typing import Any

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``family_model`` is every supported family and variant in turn."""
    if "family_model" in metafunc.fixturenames:
        from tiny_models import CONFIGS

        metafunc.parametrize("family_model", sorted(CONFIGS), indirect=True)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named after their argument: those of a compressed file hold the hour, and processes would disagree."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture
def family_model(request: pytest.FixtureRequest) -> Any:
    from tiny_models import build

    return build(request.param)


@pytest.fixture
def llama() -> Any:
    from tiny_models import build

    return build("llama")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny model, its tokenizer, texts and a task, for the tests of one file."""
    from workspace import Workspace

    return Workspace.make(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def word_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoTokenizer reads every qwen2 folder as byte-level BPE, which the tests' word-level tokenizer is not."""
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr("models.loading.load_tokenizer", lambda path, *_: PreTrainedTokenizerFast.from_pretrained(path))
