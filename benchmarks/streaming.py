"""What pruning a checkpoint larger than memory takes: peak resident size and seconds of a whole run, magnitude, 20 %.

    python -m benchmarks.streaming --gigabytes 4        # bfloat16, layers of Mistral-7B's shape, a tiny vocabulary

A random sharded checkpoint is written into a temporary folder, which needs twice its size of disk and goes afterwards,
and ``run_global_pruning.py --low_memory`` prunes it in a process of its own. The peak is what the kernel counted for
that process, its libraries included. This process imports nothing large, because a child starts with the peak of the
process that started it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIMIT_BYTES = 1.5e9
LAYER: dict[str, int] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
VOCABULARY = 128


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="least size of the checkpoint (default 4)")
    parser.add_argument("--max_shard_size", default="1GB", help="of both checkpoints (default 1GB)")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made (default: the system's)")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_checkpoint(options.write, options.gigabytes * 1e9, options.max_shard_size)
        return 0
    rows = ["| process | checkpoint, GB | shards | seconds | peak resident, GB | wanted |", "|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory(prefix="streaming-", dir=options.folder) as name:
        dense, output = Path(name) / "dense", Path(name) / "run"
        write = [sys.executable, "-m", "benchmarks.streaming", *sys.argv[1:], "--write", str(dense)]
        rows.append(row("write it at random", run(write), dense, ""))
        prune = [sys.executable, "run_global_pruning.py", "--base_model", str(dense), "--pruning_ratio", "0.2"]
        prune += ["--importance_method", "magnitude", "--low_memory", "--max_shard_size", options.max_shard_size]
        prune += ["--run_evaluation", "none", "--output", str(output)]
        rows.append(row("magnitude, 20 %", run(prune), output / "model", f"< {LIMIT_BYTES / 1e9}"))
        replay = [*prune[:-1], str(Path(name) / "replay"), "--plan", str(output / "analysis" / "pruning_plan.json")]
        (output / "model").rename(Path(name) / "first")
        rows.append(row("--plan", run(replay), Path(name) / "replay" / "model", f"< {LIMIT_BYTES / 1e9}"))
    print("\n".join(rows))
    return 0


class Cost(NamedTuple):
    seconds: float
    peak_bytes: int


def run(command: list[str]) -> Cost:
    """Wall-clock seconds and peak resident size of a process, by the kernel's own account (Linux: in KiB)."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
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
    letters = {chr(code): code for code in range(VOCABULARY)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(letters, []))).save_pretrained(folder)


class RandomTensors(dict[str, Any]):
    """A tensor of each spec, drawn anew whenever it is asked for."""

    def __getitem__(self, name: str) -> Any:
        import torch

        spec = super().__getitem__(name)
        generator = torch.Generator().manual_seed(sum(name.encode()))
        return torch.empty(spec.shape, dtype=spec.dtype).normal_(0.0, 0.02, generator=generator)


if __name__ == "__main__":
    sys.exit(main())
