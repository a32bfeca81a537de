"""A folder with everything a run needs and no network: a tiny model, its tokenizer, a text."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tiny_models import CONFIGS, build
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import run_global_pruning
from cli.options import parse_options
from run.option_rules import idle_notes

WORDS = [first + second for first in "bdfgklmnpr" for second in ("a", "e", "i", "o", "u", "an", "en", "on", "un")]


def write_model(folder: Path, name: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    """A model of tiny_models.CONFIGS with a word-level tokenizer of its vocabulary (97 entries, BOS before a text)."""
    model = build(name, std=0.15).to(dtype)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def word_tokenizer() -> Any:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def write_text(path: Path, paragraphs: int = 120, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, 25)) for _ in range(paragraphs)]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class Workspace:
    root: Path
    model: Path
    text: Path
    other_text: Path
    task_folder: Path

    @staticmethod
    def make(root: Path) -> "Workspace":
        return Workspace(
            root=root,
            model=write_model(root / "model", dtype=torch.bfloat16),
            text=write_text(root / "text.txt"),
            other_text=write_text(root / "other.txt", seed=1),
            task_folder=write_task(root / "tasks"),
        )

    def base_arguments(self) -> list[str]:
        return [
            *("--base_model", str(self.model), "--dataset", str(self.text), "--device", "cpu"),
            *("--ratio_of", "prunable", "--pruning_ratio", "0.4", "--num_samples", "6", "--seq_len", "16"),
            *("--eval_seq_len", "32", "--importance_method", "taylor", "--reconstruct", "none"),
            *("--run_evaluation", "ppl", "--eval_elsewhere", "none"),
        ]

    def run(self, name: str, *arguments: str) -> Path:
        """Run in this process into root/name; fails the test when the exit code is not 0. Later options win."""
        output = self.root / name
        code, _, error = call([*self.base_arguments(), "--output", str(output), *arguments])
        assert code == 0, error
        return output


def write_task(folder: Path) -> Path:
    """A local lm-eval task of three two-way items."""
    folder.mkdir()
    items = [{"context": "ba be", "choices": ["bi bo", "ru ru ru"], "answer": i % 2} for i in range(3)]
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "tiny_choice.yaml").write_text(
        "task: tiny_choice\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {data}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{context}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
        "metric_list:\n  - metric: acc\n"
    )
    return folder


def call(arguments: list[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the program run in this process."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            code = run_global_pruning.main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), error.getvalue()


def notes_on(*arguments: str) -> list[str]:
    """What the program says of options that cannot act."""
    command = parse_options(["--base_model", "demo", *arguments])
    return idle_notes(command.settings, command.given)


def observe(folder: Path) -> dict[str, Any]:
    """What a user can see of a finished run, apart from timings."""
    record = json.loads((folder / "run.json").read_text())
    groups = pq.read_table(folder / "analysis" / "groups.parquet")
    results = folder / "evaluation" / "evaluation_results.json"
    config = folder / "model" / "config.json"
    return {
        "plan": (folder / "analysis" / "pruning_plan.json").read_bytes(),
        "importance": groups["importance"].to_pylist(),
        "score": groups["score"].to_pylist(),
        "evaluation": _without_speed(json.loads(results.read_text())) if results.exists() else None,
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()),
        "windows": record["windows"],
        "stored": json.loads(config.read_text())["dtype"] if config.exists() else None,
    }


def _without_speed(results: dict[str, Any]) -> dict[str, Any]:
    return {
        half: {key: value if key != "latency" else value is not None for key, value in (found or {}).items()}
        for half, found in results.items()
        if half != "change"
    }


__all__ = ["CONFIGS", "WORDS", "Workspace", "call", "observe", "word_tokenizer", "write_model", "write_text"]
