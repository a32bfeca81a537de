"""What pruning a checkpoint larger than memory takes: peak resident size and processor seconds of whole runs.

    python -m benchmarks.streaming --gigabytes 8        # bfloat16, layers of Mistral-7B's shape, a tiny vocabulary

A random sharded checkpoint is written into a temporary folder, which needs three times its size of disk and goes
afterwards, and ``run_global_pruning.py --engine streamed`` prunes it by 20 %, each run in a process of its own: by
``magnitude``, by replaying that plan, and by ``fisher`` with perplexity before and after. ``--resident`` prunes by
``fisher`` with the weights in memory as well, for a size that fits; ``--proof`` has what ``fisher`` prunes proved;
``--obs`` prunes by ``obs`` with a repair, which needs 7 GB for four matrices of 14,336² float64 values. The peak is
what the kernel counted for a process, its libraries included. This process imports nothing large, because a child
starts with the peak of the process that started it. Seconds are those of the processor (user and system), which other
programs change less than the clock's.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import string
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIMITS_GB = {"weights alone": 1.5, "layers": 2.5}
LAYER: dict[str, int] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
VOCABULARY = 128


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streaming",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gigabytes", type=float, default=8.0, help="least size of the checkpoint (default 8)")
    parser.add_argument("--max_shard_size", default="1GB", help="of both checkpoints (default 1GB)")
    parser.add_argument("--windows", type=int, default=4, help="calibration and evaluation windows (default 4)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each (default 64)")
    parser.add_argument("--resident", action="store_true", help="also with all weights in memory")
    parser.add_argument("--proof", action="store_true", help="also with the saved folder proved")
    parser.add_argument("--obs", action="store_true", help="also by obs with a repair; needs --windows 2")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made (default: the system's)")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_checkpoint(options.write, options.gigabytes * 1e9, options.max_shard_size)
        return 0
    rows = [
        "| process | checkpoint, GB | shards | CPU seconds | peak resident, GB | wanted |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(prefix="streaming-", dir=options.folder) as name:
        work, dense = Path(name), Path(name) / "dense"
        write = [sys.executable, "-m", "benchmarks.streaming", *sys.argv[1:], "--write", str(dense)]
        rows.append(row("write it at random", run(write), dense, ""))
        (work / "text.txt").write_text(letters(60 * options.windows * options.tokens))
        prune = [sys.executable, "run_global_pruning.py", "--base_model", str(dense), "--pruning_ratio", "0.2"]
        prune += ["--max_shard_size", options.max_shard_size, "--cache_dir", "none"]
        prune += ["--dataset", str(work / "text.txt")]
        bare = [*prune, "--no_verify", "--reconstruct", "none"]
        alone = [*bare, "--importance_method", "magnitude", "--run_evaluation", "none"]
        text = ["--num_samples", str(options.windows), "--seq_len", str(options.tokens)]
        fisher = ["--importance_method", "fisher", *text, "--eval_seq_len", str(options.tokens)]
        fisher += ["--eval_samples", str(options.windows), "--run_evaluation", "ppl"]
        obs = [*prune, "--no_verify", "--importance_method", "obs", *text, "--run_evaluation", "none"]
        plan, streamed = work / "run" / "analysis" / "pruning_plan.json", ["--engine", "streamed", "--scratch", name]
        for label, command, kind in (
            ("magnitude", [*alone, *streamed], "weights alone"),
            ("`--plan`", [*alone, *streamed, "--plan", str(plan)], "weights alone"),
            ("fisher, perplexity twice", [*bare, *fisher, *streamed], "layers"),
            *[("the same, resident", [*bare, *fisher, "--engine", "resident"], "")] * options.resident,
            *[("the same, proved", [*prune, "--reconstruct", "none", *fisher, *streamed], "")] * options.proof,
            *[("obs and repair", [*obs, *streamed], "")] * options.obs,
        ):
            output = work / "run" if label == "magnitude" else work / "next"
            cost = run([*command, "--output", str(output), "--overwrite"])
            rows.append(row(label, cost, output / "model", f"< {LIMITS_GB[kind]}" if kind else ""))
            shutil.rmtree(output / "model")
    print("\n".join(rows))
    return 0


def letters(count: int) -> str:
    """Words of random letters in paragraphs."""
    draw = random.Random(0)
    words = ("".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(count // 6))
    return "\n\n".join(" ".join(itertools.islice(words, 60)) for _ in range(count // 360 + 1))


class Cost(NamedTuple):
    seconds: float
    peak_bytes: int


def run(command: list[str]) -> Cost:
    """Processor seconds and peak resident size of a process, by the kernel's own account (Linux: in KiB)."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = usage.ru_utime + usage.ru_stime
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read()[-2000:]}")
    return Cost(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def row(label: str, cost: Cost, folder: Path, wanted: str) -> str:
    files = list(folder.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    line = (
        f"| {label} | {size / 1e9:.2f} | {len(files)} | {cost.seconds:.0f} | {cost.peak_bytes / 1e9:.2f} | {wanted} |"
    )
    print(line, file=sys.stderr)
    return line


def write_checkpoint(folder: Path, least_bytes: float, max_shard_size: str) -> None:
    """A Llama of as many layers as the size needs, weights from N(0, 0.02), and a tokenizer of letters."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from models.tensors import specs_of, write_tensors

    hidden, channels, heads = LAYER["hidden_size"], LAYER["intermediate_size"], LAYER["num_key_value_heads"]
    params = hidden * (2 * hidden + 2 * heads * LAYER["head_dim"] + 3 * channels + 2)
    layers = int(-(-least_bytes // (2 * params)))
    config = AutoConfig.for_model("llama", **LAYER, num_hidden_layers=layers, vocab_size=VOCABULARY, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    folder.mkdir()
    specs = specs_of(model, torch.bfloat16)
    write_tensors(folder, specs, RandomTensors(specs), max_shard_size)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    characters = {chr(code): code for code in range(VOCABULARY)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(characters, []))).save_pretrained(folder)


class RandomTensors(dict[str, Any]):
    """A tensor of each spec, drawn anew whenever it is asked for."""

    def __getitem__(self, name: str) -> Any:
        import torch

        spec = super().__getitem__(name)
        generator = torch.Generator().manual_seed(sum(name.encode()))
        return torch.empty(spec.shape, dtype=spec.dtype).normal_(0.0, 0.02, generator=generator)


if __name__ == "__main__":
    sys.exit(main())
