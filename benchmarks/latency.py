"""What rounding widths gains and costs: tokens a second of one shape dense, pruned unrounded and pruned rounded.

    python -m benchmarks.latency                                   # 111 M parameters, float32, CPU
    python -m benchmarks.latency --device cuda --dtype bfloat16 --hidden 4096 --intermediate 14336 --layers 32 \\
        --heads 32 --kv_heads 8                                    # a 7B shape on a GPU

A randomly initialised Llama is pruned by random scores, so that every layer gets widths of its own: once with
``--round_to 1``, once with ``--round_to 64``. Speed does not depend on the weights' values. Runs alternate between the
variants, because a machine's speed drifts; every figure is the median over them, next to its ratio to dense. Compare
ratios of one run only.
"""

import argparse
import copy
import json
import statistics
import sys
from pathlib import Path
from typing import Any

SPEEDS = ("prefill_tokens_per_s", "decode_tokens_per_s")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--hidden", default=1024, help="hidden size (default 1024)", **whole)
    parser.add_argument("--intermediate", default=2816, help="MLP channels (default 2816)", **whole)
    parser.add_argument("--layers", default=8, help="decoder layers (default 8)", **whole)
    parser.add_argument("--heads", default=16, help="query heads (default 16)", **whole)
    parser.add_argument("--kv_heads", default=8, help="KV heads (default 8)", **whole)
    parser.add_argument("--vocab", default=8000, help="vocabulary (default 8000)", **whole)
    parser.add_argument("--ratio", type=float, default=0.3, metavar="R", help="of prunable parameters (default 0.3)")
    parser.add_argument("--round_to", default=64, help="channels a step when rounded (default 64)", **whole)
    parser.add_argument("--prompt", default=256, help="tokens of the prefill (default 256)", **whole)
    parser.add_argument("--new_tokens", default=32, help="tokens of the decode (default 32)", **whole)
    parser.add_argument("--rounds", default=7, help="runs a variant, in turn (default 7)", **whole)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--dtype", default="float32", help="of weights and computation (default float32)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there too")
    options = parser.parse_args()
    models = build_variants(options)
    runs = measure(models, options)
    print(table(runs, {name: count(model) for name, model in models.items()}))
    if options.json:
        options.json.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    return 0


def build_variants(options: argparse.Namespace) -> dict[str, Any]:
    """The dense model and its two prunings, each with weights of its own."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from models.family_table import FAMILIES

    family = FAMILIES["llama"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        max_position_embeddings=options.prompt + options.new_tokens,
    )
    dense = AutoModelForCausalLM.from_config(config).to(options.device, getattr(torch, options.dtype)).eval()
    models = {"dense": dense}
    for variant, round_to in (("unrounded", 1), ("rounded", options.round_to)):
        models[variant] = prune(copy.deepcopy(dense), family, options.ratio, round_to)
    return models


def prune(model: Any, family: Any, ratio: float, round_to: int) -> Any:
    """Random scores, which differ from layer to layer, so that the layers' widths do too."""
    import numpy as np

    from models.architecture import architecture_of
    from models.narrow import empty_narrow_model
    from pruning.planning import Limits, plan_removal
    from pruning.surgery import operate

    architecture = architecture_of(model, family)
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.8, 1.25, architecture.num_layers)
    scores = rng.random(len(architecture.groups)) * scale[architecture.groups.layer]
    limits = Limits(round_to=round_to)
    plan = plan_removal(architecture, np.argsort(scores), ratio=ratio, ratio_of="prunable", limits=limits)
    return operate(model, empty_narrow_model(model, family, plan), family, plan)


def measure(models: dict[str, Any], options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """variant -> speed -> one figure a round. The first round warms up and is not counted."""
    from evaluation.speed import latency

    runs: dict[str, dict[str, list[float]]] = {variant: {speed: [] for speed in SPEEDS} for variant in models}
    for round_index in range(options.rounds + 1):
        for variant, model in models.items():
            found = latency(
                model,
                vocab_size=options.vocab,
                seq_len=options.prompt,
                new_tokens=options.new_tokens,
                repeats=1,
                seed=round_index,
            )
            for speed in SPEEDS if round_index else ():
                runs[variant][speed].append(found[speed])
    return runs


def count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def table(runs: dict[str, dict[str, list[float]]], parameters: dict[str, int]) -> str:
    """Markdown: medians over rounds, and each variant's ratio to dense."""
    middle = {variant: {speed: statistics.median(found[speed]) for speed in SPEEDS} for variant, found in runs.items()}
    rows = [
        "| variant | parameters | prefill tokens/s | × dense | decode tokens/s | × dense |",
        "|---|---|---|---|---|---|",
    ]
    for variant, found in middle.items():
        cells = [f"{parameters[variant]:,}"]
        for speed in SPEEDS:
            cells += [f"{found[speed]:,.1f}", f"{found[speed] / middle['dense'][speed]:.2f}"]
        rows.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
