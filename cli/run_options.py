"""The options of a run around its plan: the model, the text, the repair, what is written, what is evaluated."""

import argparse
import math
from pathlib import Path

from cli.values import batch_size, names, number, one_of, shard_size
from core.names import DTYPES, EXPORTS, MEASURES, REPAIR_MODULES, REPAIR_TARGETS, REPAIR_TEXTS, REPAIRS


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
        metavar="D",
        help="auto, cpu, cuda or cuda:N (default auto: a GPU if there is one)",
    )
    add(
        "--dtype",
        choices=DTYPES,
        help="compute in this dtype and save in it (default auto: compute in float32 on a CPU and in the checkpoint's "
        "dtype on a GPU, save in the checkpoint's)",
    )
    add(
        "--gpu_memory",
        type=shard_size,
        metavar="SIZE",
        help="most that tensors may take of the GPU, e.g. 17GB; what would take more is computed again or in smaller "
        "batches (default all that is free)",
    )
    add(
        "--low_memory",
        action="store_true",
        help="never hold the model in memory: read, cut and write it tensor by tensor on the CPU; for magnitude or "
        "--plan, "
        "without evaluation; enabled automatically for such runs when the model would need more than half of free "
        "memory "
        "(default off)",
    )
    add("--trust_remote_code", action="store_true", help="run Python that a model brings along (default off)")


def calibration_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--dataset",
        metavar="DATA",
        help="c4, wikitext2, ptb, pydoc (offline), or your own text: a file (.txt .md .jsonl .csv .parquet .arrow ..., "
        "compressed or not) or a folder of them (default wikitext2)",
    )
    add(
        "--text_column",
        metavar="NAME",
        help="where the rows of your own files keep their text, in --dataset and in --eval_datasets (default text)",
    )
    add(
        "--num_samples",
        type=number(int, 1, math.inf),
        metavar="N",
        help="number of calibration windows (default 128)",
    )
    add(
        "--seq_len",
        type=number(int, 2, math.inf),
        metavar="T",
        help="tokens per calibration window (default 256)",
    )
    add(
        "--batch_size",
        type=batch_size,
        metavar="B",
        help="windows per pass; auto starts with what keeps the device busy (taylor on a CPU with one) and halves when "
        "memory runs out (default auto)",
    )
    add(
        "--seed",
        type=number(int, 0, 2**32 - 1),
        metavar="S",
        help="seed of every random choice (default 0)",
    )


def repair_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--reconstruct",
        choices=REPAIRS,
        help="refit what is left to the dense model on the calibration windows (default least_squares; none with "
        "--low_memory, "
        "with magnitude, and for a replayed plan whose perplexity on --dataset is not measured)",
    )
    add(
        "--reconstruct_modules",
        choices=REPAIR_MODULES,
        help="refit all projections of a block, or o_proj and down_proj alone (default all; outputs with "
        "--reconstruct_target pruned)",
    )
    add(
        "--reconstruct_target",
        choices=REPAIR_TARGETS,
        help="what to refit to: stream brings the residual stream back to the dense model's; dense and pruned are the "
        "dense "
        "block's outputs on the dense or on the pruned stream (default stream)",
    )
    add(
        "--reconstruct_text",
        choices=REPAIR_TEXTS,
        help="mixed: also refit on shuffled tokens, which generalises better to other text; calibration: on the "
        "calibration "
        "windows alone (default mixed)",
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
    add("--dry_run", action="store_true", help="plan and diagnose only; no model is pruned or saved (default off)")
    add(
        "--plan",
        type=Path,
        metavar="FILE",
        help="replay a saved pruning_plan.json instead of measuring (default none)",
    )
    add(
        "--max_shard_size",
        type=shard_size,
        metavar="SIZE",
        help="largest weight file of the saved model, e.g. 200MB; a larger model is saved in shards (default 5GB)",
    )
    add("--verify", action="store_true", help="reload the saved model and check it (default on)")
    add("--no_verify", dest="verify", action="store_false", help="skip that check (default off)")
    add(
        "--cache_dir",
        metavar="DIR",
        help="folder that keeps importance, priors and dense perplexities for later runs; none: no cache (default "
        "$GLOBAL_PRUNING_CACHE, or global-pruning in the user's cache folder)",
    )
    add("--export", choices=EXPORTS, help="also write <output>/model.gguf, f16, for llama.cpp (default none)")
    add("--no_save_model", action="store_true", help="prune and evaluate, but save no weights (default off)")


def evaluation_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--run_evaluation",
        type=one_of(*MEASURES, alone="none"),
        metavar="LIST",
        help="what to measure before and after: a comma list of ppl, tasks, speed, or none (default ppl)",
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
        help="tokens per evaluation window (default 2048, or the model's context if smaller)",
    )
    add(
        "--eval_samples",
        type=number(int, 1, math.inf),
        metavar="N",
        help="evaluation windows per dataset (default all; of a text of your own the first 1,048,576 tokens)",
    )
    add(
        "--eval_tasks",
        type=names,
        metavar="LIST",
        help="lm-eval task names; naming them runs them (default: pydoc_cloze where --run_evaluation has tasks)",
    )
    add("--eval_task_path", type=Path, metavar="DIR", help="folder of local lm-eval YAML tasks (default none)")
