"""The options of a run around its plan: the model, the text, the repair, what is written, what is evaluated."""

import argparse
import math
from pathlib import Path

from cli.values import batch_size, names, number, one_of, shard_size

MEASURES = ("ppl", "tasks", "speed")


def model_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--base_model",
        required=True,
        metavar="M",
        help="hub id, folder, or demo (the embedded model); required",
    )
    add(
        "--device",
        default="auto",
        metavar="D",
        help="auto, cpu, cuda or cuda:N (default auto: a GPU if there is one)",
    )
    add(
        "--dtype",
        default="auto",
        choices=("auto", "bfloat16", "float16", "float32"),
        help="compute in this dtype and save in it (default auto: compute in float32 on a CPU and in the checkpoint's "
        "dtype on a GPU, save in the checkpoint's)",
    )
    add(
        "--low_memory",
        action="store_true",
        help="never hold the model: read, cut and write tensor by tensor on the CPU; magnitude or --plan, without "
        "evaluation; such runs do it unasked where the model would take over half the free memory (default off)",
    )
    add("--trust_remote_code", action="store_true", help="run Python that a model brings along (default off)")


def calibration_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--dataset",
        default="wikitext2",
        metavar="DATA",
        help="c4, wikitext2, ptb, pydoc (offline), or a .txt/.jsonl/.parquet/.json.gz file or a folder of them "
        "(default wikitext2)",
    )
    add(
        "--num_samples",
        type=number(int, 1, math.inf),
        default=128,
        metavar="N",
        help="windows (default 128)",
    )
    add(
        "--seq_len",
        type=number(int, 2, math.inf),
        default=256,
        metavar="T",
        help="tokens a window (default 256)",
    )
    add(
        "--batch_size",
        type=batch_size,
        default=None,
        metavar="B",
        help="windows a pass, for everything but taylor*, which takes one; auto halves on out-of-memory (default auto)",
    )
    add(
        "--seed",
        type=number(int, 0, 2**32 - 1),
        default=0,
        metavar="S",
        help="of every random choice (default 0)",
    )


def repair_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--reconstruct",
        choices=("none", "least_squares"),
        help="refit what is left to the dense model on the calibration windows (default least_squares where another "
        "step reads that text and holds the model, else none)",
    )
    add(
        "--reconstruct_modules",
        choices=("all", "outputs"),
        help="refit all projections of a block, or o_proj and down_proj alone (default all, with --reconstruct_target "
        "pruned outputs)",
    )
    add(
        "--reconstruct_target",
        choices=("stream", "dense", "pruned"),
        default="stream",
        help="what brings the residual stream back to the dense model's, or the dense block's outputs on the dense or "
        "on the pruned stream (default stream)",
    )
    add(
        "--reconstruct_text",
        choices=("mixed", "calibration"),
        default="mixed",
        help="refit on calibration windows and on twice as many with their tokens in random order, which other text "
        "gains by, or on the windows alone (default mixed)",
    )


def output_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="written to exactly this folder (default results/<model>/<method>_<ratio>[_<options>]_<dataset>)",
    )
    add("--overwrite", action="store_true", help="replace an earlier run in that folder (default off)")
    add("--dry_run", action="store_true", help="plan and diagnose; no surgery, no model (default off)")
    add(
        "--plan",
        type=Path,
        metavar="FILE",
        help="replay a saved pruning_plan.json instead of measuring (default none)",
    )
    add(
        "--max_shard_size",
        type=shard_size,
        default="5GB",
        metavar="SIZE",
        help="largest weight file of the saved model, e.g. 200MB; larger ones become shards (default 5GB)",
    )
    add("--verify", action="store_true", default=True, help="load the saved model afresh and prove it (default on)")
    add("--no_verify", dest="verify", action="store_false", help="skip that proof (default off)")
    add(
        "--cache_dir",
        metavar="DIR",
        help="keep importance, priors and dense perplexities here and take them from earlier runs; none: do neither "
        "(default $GLOBAL_PRUNING_CACHE, or global-pruning in the user's cache folder)",
    )
    add("--export", choices=("gguf",), help="also write <output>/model.gguf, f16, for llama.cpp (default none)")
    add("--no_save_model", action="store_true", help="prune and evaluate, but save no weights (default off)")


def evaluation_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--run_evaluation",
        type=one_of(*MEASURES, alone="none"),
        default=["ppl"],
        metavar="LIST",
        help="comma list of ppl, tasks, speed, or none (default ppl)",
    )
    add(
        "--eval_datasets",
        type=names,
        metavar="LIST",
        help="comma list of datasets for perplexity (default: the calibration dataset's held-out split)",
    )
    add(
        "--eval_seq_len",
        type=number(int, 2, math.inf),
        metavar="T",
        help="tokens a window (default 2048, or the model's context if smaller)",
    )
    add("--eval_samples", type=number(int, 1, math.inf), metavar="N", help="windows a dataset (default all)")
    add(
        "--eval_tasks",
        type=names,
        metavar="LIST",
        help="lm-eval task names; naming them runs them (default: pydoc_cloze where --run_evaluation has tasks)",
    )
    add("--eval_task_path", type=Path, metavar="DIR", help="folder of local lm-eval YAML tasks (default none)")
