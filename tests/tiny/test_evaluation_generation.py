"""What a model writes after held-out beginnings, and the measures of it, worked out by hand."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build
from workspace import Workspace, call, observe

from core.say import heard_by
from core.windows import TokenWindows
from evaluation import generation as module
from evaluation.generation import end_tokens, generation_health, health_of, prompts_of, repeated_share


def windows_of(ids: np.ndarray) -> TokenWindows:
    return TokenWindows(ids.astype(np.int64), "toy", "evaluation", "drawn at random")


@pytest.fixture
def windows() -> TokenWindows:
    return windows_of(np.random.default_rng(1).integers(4, 97, (3, 20)))


@pytest.fixture
def model() -> Any:
    return build("llama", std=0.15)


def tokenizer(bos: int | None = None, eos: int | None = None) -> Any:
    return SimpleNamespace(bos_token_id=bos, eos_token_id=eos)


def health(model: Any, windows: TokenWindows, *, others: Any = None, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"batch_size": None, "seed": 0, "label": "dense"}
    texts = {"toy": windows} | (others or {})
    return generation_health(model, tokenizer(), texts, **defaults | options)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ([1, 2, 3], 0.0),  # no 4-gram
        ([1, 2, 3, 4, 5], 0.0),
        ([7, 7, 7, 7, 7, 7], 2 / 3),  # three 4-grams, one different
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),  # 1234 2341 3412 4123 1234
    ],
)
def test_repetition_counts_4_grams_that_came_before(tokens: list[int], share: float) -> None:
    assert repeated_share(np.array(tokens)) == pytest.approx(share)


def test_what_follows_an_end_does_not_count() -> None:
    """Lengths 6, 1 and 0; two of three end; 2/3 of the first text's 4-grams came before, the others have none."""
    texts = np.array([[7, 7, 7, 7, 7, 7], [5, 2, 7, 7, 7, 7], [3, 7, 7, 7, 7, 7]])
    found = health_of(texts, (2, 3))
    assert found["length"] == pytest.approx(7 / 3)
    assert found["ended"] == pytest.approx(2 / 3)
    assert found["ended_stderr"] == pytest.approx(np.std([0, 1, 1], ddof=1) / 3**0.5)
    assert found["repeated_4grams"] == pytest.approx(2 / 9)
    without_end = health_of(texts, ())
    assert (without_end["ended"], without_end["ended_stderr"], without_end["length"]) == (None, None, 6)
    assert set(health_of(np.array([[1, -1]]), (2,)).values()) == {None}


def test_beginnings_are_spread_over_the_text_and_start_as_windows_do() -> None:
    """Windows of BOS and 4 tokens of text 10 … 21: beginnings of 3 at 10, 12, 14 and 16, each after BOS."""
    ids = np.insert(np.arange(10, 22).reshape(3, 4), 0, 1, axis=1)
    assert prompts_of(windows_of(ids), 1, 4).tolist() == [[1, a, a + 1, a + 2] for a in (10, 12, 14, 16)]
    assert prompts_of(windows_of(np.arange(10, 22).reshape(3, 4)), None, 6).tolist() == [
        [10, 11, 12, 13, 14, 15],
        [13, 14, 15, 16, 17, 18],
    ]


def test_ends_are_the_generation_configs_else_the_tokenizers() -> None:
    config = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[3, 5]))
    assert end_tokens(config, tokenizer(eos=1)) == (3, 5)
    config.generation_config.eos_token_id = None
    assert end_tokens(config, tokenizer(eos=1)) == (1,)
    assert end_tokens(config, tokenizer()) == ()


def test_greedy_text_is_what_generate_writes_and_sampling_follows_the_distribution(
    model: Any, windows: TokenWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[np.ndarray] = []

    def keep(texts: np.ndarray, ends: tuple[int, ...]) -> dict[str, Any]:
        kept.append(texts)
        return {}

    monkeypatch.setattr(module, "health_of", keep)
    monkeypatch.setattr(module, "NEW_TOKENS", 5)
    monkeypatch.setattr(module, "PROMPT_TOKENS", 8)
    told = health(model, windows)
    prompts = torch.from_numpy(prompts_of(windows, None, 8))
    model.generation_config.eos_token_id = None
    expected = model.generate(prompts, max_new_tokens=5, do_sample=False, pad_token_id=0)
    greedy, sampled, *over_all = kept
    assert [found.tolist() for found in over_all] == [greedy.tolist(), sampled.tolist()]  # of a single text the same
    assert greedy.tolist() == expected[:, 8:].tolist()
    assert (told["prompts"], told["prompt_tokens"], told["new_tokens"]) == (len(prompts), 8, 5)

    chances = np.random.default_rng(0).random((len(prompts), 5))
    with torch.no_grad():
        first = torch.softmax(model(prompts).logits[:, -1].double(), -1).cumsum(-1).numpy()
    assert sampled[:, 0].tolist() == [
        int(np.searchsorted(row, u, side="right")) for row, u in zip(first, chances[:, 0], strict=True)
    ]


def test_batches_do_not_show_the_seed_does_and_the_model_is_left_as_found(model: Any, windows: TokenWindows) -> None:
    model.train()
    at_once = health(model, windows)
    assert health(model, windows, batch_size=2) == at_once
    assert health(model, windows, seed=1)["greedy"] == at_once["greedy"]
    assert model.training
    assert at_once["prompt_tokens"] + at_once["new_tokens"] <= model.config.max_position_embeddings
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0] = torch.nan
    assert health(model, windows)["greedy"]["repeated_4grams"] is None


def test_several_texts_share_the_prompts_and_instructions_are_answered(
    model: Any, windows: TokenWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 prompts over three texts are five each; a text too short for two beginnings has one. Padded rows are
    continued as they are alone."""
    monkeypatch.setattr(module, "NEW_TOKENS", 6)
    monkeypatch.setattr(module, "PROMPT_TOKENS", 4)
    others = {"other": windows_of(np.random.default_rng(2).integers(4, 97, (1, 7)))}
    chat = [(5, 6, 7), (8, 9, 10, 11, 12, 13), (14, 15), (16,) * 5, (17,) * 200, (18, 19), (20, 21, 22, 23, 24, 25, 26)]
    written: dict[tuple[int, ...], list[np.ndarray]] = {}
    continued = module._continued

    def kept(model: Any, prompts: Any, chances: Any, size: int) -> np.ndarray:
        texts = continued(model, prompts, chances, size)
        for row, text in zip(prompts, texts[0], strict=False):
            written.setdefault(tuple(row.tolist()), []).append(text)
        return texts

    monkeypatch.setattr(module, "_continued", kept)
    found = health(model, windows, others=others, chat=chat)
    assert {name: text["prompts"] for name, text in found["texts"].items()} == {"toy": 5, "other": 1, module.CHAT: 5}
    assert (found["prompts"], found["dataset"], found["prompt_tokens"]) == (11, "toy,other,chat template", 6)
    lengths = [text["greedy"]["length"] * text["prompts"] for text in found["texts"].values()]
    assert found["greedy"]["length"] == pytest.approx(sum(lengths) / 11)
    model.generation_config.eos_token_id = None
    for row, (text,) in written.items():
        expected = model.generate(torch.tensor([row]), max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert text.tolist() == expected[0, len(row) :].tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_rows_are_padded_in_half_precision_too(model: Any, windows: TokenWindows, dtype: torch.dtype) -> None:
    """Where a row begins with padding, its first queries may attend to nothing."""
    found = health(model.to(dtype), windows, chat=[(5, 6), (7, 8, 9, 10, 11), (12, 13, 14)])
    for text in found["texts"].values():
        assert all(text[way]["repeated_4grams"] is not None for way in ("greedy", "sampled"))


def test_instructions_without_room_are_left_out_with_a_note(model: Any, windows: TokenWindows) -> None:
    heard: list[str] = []
    with heard_by(heard.append):
        found = health(model, windows, chat=[(5,) * 200, (6,) * 300])
    assert found["dataset"] == "toy"
    assert [line.split(" takes over ")[0] for line in heard] == ["note: every instruction in the chat template"]


def test_a_chat_model_is_judged_by_its_answers(workspace: Workspace, tmp_path: Path) -> None:
    chats = tmp_path / "chats"
    shutil.copytree(workspace.model, chats)
    template = "{% for m in messages %}<s> ba {{ m.role }} {% endfor %}{% if add_generation_prompt %}bo{% endif %}"
    (chats / "chat_template.jinja").write_text(template)
    arguments = ["--base_model", str(chats), "--run_evaluation", "generation", "--no_verify"]
    arguments += ["--eval_datasets", f"{workspace.text},{workspace.other_text}"]
    code, report, error = call([*workspace.base_arguments(), *arguments, "--output", str(tmp_path / "run")])
    assert code == 0, error
    found = observe(tmp_path / "run")["evaluation"]
    names = [str(workspace.text), str(workspace.other_text), "chat template"]
    for part in ("dense", "pruned"):
        assert list(found[part]["generation"]["texts"]) == names
        assert [text["prompts"] for text in found[part]["generation"]["texts"].values()] == [5, 5, 5]
    results = json.loads((tmp_path / "run" / "evaluation" / "evaluation_results.json").read_text())
    assert list(results["change"]["generation"]["texts"]) == names
    assert "  after chat template" in report


def test_a_run_tells_what_both_models_write(tmp_path: Path) -> None:
    workspace = Workspace.make(tmp_path)
    folder = workspace.root / "run"
    arguments = [*workspace.base_arguments(), "--run_evaluation", "generation", "--output", str(folder)]
    code, report, error = call(arguments)
    assert code == 0, error
    found = observe(folder)["evaluation"]
    assert found["pruned"]["perplexity"] == found["pruned"]["distance"] == {}
    for side in ("dense", "pruned"):
        assert found[side]["generation"]["dataset"] == str(workspace.text)
        assert 0 <= found[side]["generation"]["sampled"]["repeated_4grams"] < 1
    assert "greedy text repeated" in report
    assert "4-grams repeated in sampled text" in (folder / "model" / "README.md").read_text()
    dry = observe(workspace.run("dry", "--run_evaluation", "generation", "--dry_run"))["evaluation"]
    assert dry["dense"]["generation"] is None
