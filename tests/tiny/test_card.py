"""The model card: metadata that the hub can read, figures that are the plan's, nothing invented, no path leaked."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tiny_models import build, random_plan

from core.plan import PruningPlan
from models.architecture import architecture_of
from models.card import inherited_metadata, labels_of, model_card
from models.family_table import family_of

RESULTS: dict[str, Any] = {
    "dense": {
        "parameters": 57_408,
        "bytes": 114_816,
        "perplexity": {"pydoc": {"perplexity": 50.25}, "/data/mine.txt": {"perplexity": 7.5}},
        "tasks": {"pydoc_cloze": {"acc": 0.75, "acc_stderr": 0.01, "num_items": 400}},
        "generation": {"greedy": {"repeated_4grams": 0.125, "ended": None}},
        "latency": None,
    },
    "pruned": {
        "parameters": 41_000,
        "bytes": 82_000,
        "perplexity": {"pydoc": {"perplexity": 58.75}, "/data/mine.txt": {"perplexity": None}},
        "tasks": {"pydoc_cloze": {"acc": 0.625, "acc_stderr": 0.01, "num_items": 400}},
        "latency": None,
        "distance": {"pydoc": {"kl_nats_per_token": 0.04567, "top1_agreement": 0.9125}},
        "generation": {"greedy": {"repeated_4grams": 0.375, "ended": None}},
    },
}


@pytest.fixture
def plan() -> PruningPlan:
    return random_plan(architecture_of(build("llama"), family_of("llama")), seed=3, removed_layers=(1,))


def card(plan: PruningPlan, base_model: str = "some/Base-1B", **options: Any) -> str:
    plain: dict[str, Any] = {
        "criterion": "taylor",
        "transforms": {"--norm_method": "log", "--temperature": 1.0},
        "calibration": "128 windows of 256 tokens of pydoc",
        "stored_dtype": "bfloat16",
    }
    return model_card(plan, base_model=base_model, **plain | options)


def test_the_hub_reads_the_metadata(plan: PruningPlan) -> None:
    text = card(plan, inherited={"license": "apache-2.0", "language": ["en"]})
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == "some/Base-1B"
    assert data["license"] == "apache-2.0"
    assert data["language"] == ["en"]
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert {"pruned", "structured-pruning", "llama", "custom_code"} <= set(data["tags"])


def test_the_figures_are_the_plans(plan: PruningPlan) -> None:
    text = card(plan, **RESULTS)
    assert f"{plan.removed_params:,} of its {plan.architecture.total_params:,} parameters" in text
    assert f"{plan.achieved_of_total:.2%} of all, {plan.achieved_of_prunable:.2%} of prunable parameters" in text
    assert "requested: 50.0% of prunable parameters" in text
    assert "`--norm_method` log, `--temperature` 1.0" in text
    assert "layers removed entirely: 1" in text
    assert "| perplexity on pydoc | 50.25 | 58.75 |" in text
    assert "| perplexity on mine.txt | 7.5 | not finite |" in text
    assert "| 4-grams repeated in greedy text | 12.5% | 37.5% |" in text
    assert "| KL from the dense model on pydoc, nats/token |  | 0.04567 |" in text
    assert "| same likeliest token as the dense model on pydoc |  | 91.2% |" in text
    assert "| pydoc_cloze acc | 0.75 | 0.625 |" in text
    assert "stderr" not in text
    assert text.count("trust_remote_code=True") == 3
    rows = [line for line in text.splitlines() if line.startswith(("| 0 |", "| 1 |", "| 2 |"))]
    assert len(rows) == 3
    assert rows[1].startswith("| 1 | removed | 0 of 4 | 0 of 8 | 0 of 24 | 100.0% |")
    kept = plan.pruned_architecture.layers[1]
    assert rows[2].startswith(f"| 2 | 1 | {kept.num_kv_heads} of 4 | {kept.num_heads} of 8 |")


def test_what_was_not_measured_is_not_claimed(plan: PruningPlan) -> None:
    text = card(plan, transforms={}, calibration="")
    assert "Nothing was measured after pruning" in text
    assert "score transforms: none" in text
    assert "calibration:" not in text
    assert "license" not in text


def test_a_replayed_plan_names_no_criterion(plan: PruningPlan) -> None:
    assert "a saved plan, replayed" in card(plan, criterion=None, transforms={}, calibration="")


def test_a_folder_of_the_familys_own_class_needs_no_trust(plan: PruningPlan) -> None:
    text = card(plan, ships_code=False)
    assert "trust_remote_code" not in text
    assert "custom_code" not in ModelCard(text).data.to_dict()["tags"]


def test_a_folder_is_named_and_its_path_stays_at_home(plan: PruningPlan, tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    text = card(plan, str(folder))
    assert "base_model" not in ModelCard(text).data.to_dict()  # a hub refuses a push that names a folder
    assert "`my-model` with" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    "name", ["demo", "gpt2", "my models v1", "C:\\models\\x", "./here", "a/b/c", "bad--/x", "/x/y"]
)
def test_a_hub_is_told_of_hub_ids_alone(plan: PruningPlan, name: str) -> None:
    assert "base_model" not in ModelCard(card(plan, name)).data.to_dict()


@pytest.mark.parametrize(
    ("sentence", "dataset", "expected"),
    [
        ("paragraphs of /home/me/text.txt outside", "", "paragraphs of text.txt outside"),
        ("paragraphs of /home/me/my data/text.txt, all", "/home/me/my data/text.txt", "paragraphs of text.txt, all"),
        ("rows of ../mine/set (train)", "", "rows of set (train)"),
        ("rows of ~/set", "~/set", "rows of set"),
        ("train split of Salesforce/wikitext, wikitext-2", "wikitext2", None),
        ("the held-out 1/10 of pydoc", "pydoc", None),
        ("from https://example.org/a/b.txt", "", None),
    ],
)
def test_paths_of_calibration_text_stay_at_home(
    plan: PruningPlan, sentence: str, dataset: str, expected: str | None
) -> None:
    datasets = [dataset] if dataset else []
    assert f"- calibration: {expected or sentence}\n" in card(plan, calibration=sentence, datasets=datasets)


def test_datasets_of_one_name_are_told_apart() -> None:
    assert labels_of(["/a/x/test.txt", "/a/y/test.txt", "pydoc"]) == {
        "/a/x/test.txt": "x/test.txt",
        "/a/y/test.txt": "y/test.txt",
        "pydoc": "pydoc",
    }
    assert list(labels_of(["/a/x/test.txt", "/b/x/test.txt"]).values()) == ["test.txt (1)", "test.txt (2)"]
    assert labels_of(["/a/mine.txt", "wikitext2"])["/a/mine.txt"] == "mine.txt"


def test_files_that_came_along_are_listed(plan: PruningPlan) -> None:
    assert "Copied unchanged: LICENSE, NOTICE." in card(plan, travelled=["LICENSE", "NOTICE"])
    assert "Taken over" not in card(plan)


def test_the_license_comes_from_the_base_folders_card(tmp_path: Path) -> None:
    """A link to a file is kept where the file is there to travel; a link to a page always."""
    text = "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\ntags: [x]\n---\n# Base\n"
    (tmp_path / "README.md").write_text(text)
    assert inherited_metadata(tmp_path) == {"license": "other", "license_name": "mine"}
    (tmp_path / "LICENSE").write_text("terms")
    assert inherited_metadata(tmp_path) == {"license": "other", "license_name": "mine", "license_link": "LICENSE"}
    (tmp_path / "README.md").write_text(text.replace("LICENSE", "https://example.org/terms"))
    assert inherited_metadata(tmp_path)["license_link"] == "https://example.org/terms"


@pytest.mark.parametrize("content", ["# no front matter\n", "---\nlicense: [\n---\n", "---\n- a\n- b\n---\n", ""])
def test_a_card_that_says_nothing_gives_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "README.md").write_text(content)
    assert inherited_metadata(tmp_path) == {}


def test_a_model_without_a_card_gives_nothing(tmp_path: Path) -> None:
    assert inherited_metadata(tmp_path) == {}
    assert inherited_metadata(None) == {}
