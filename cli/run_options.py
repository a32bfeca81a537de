"""The options of a run around its plan: the model, the text, the repair, what is written, what is evaluated."""

import argparse
import math
from pathlib import Path

from cli.values import batch_size, datasets, names, number, one_of, shard_size
from core.names import (
    DTYPES,
    ENGINES,
    EXPORTS,
    MEASURES,
    RECOVERIES,
    REPAIR_MODULES,
    REPAIR_TARGETS,
    REPAIR_TEXTS,
    REPAIRS,
)


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
        "--engine",
        choices=ENGINES,
        help="resident: hold all weights on the device; streamed: hold one layer there while the next is read, for "
        "models of any size; sharded: several processes hold a part each; auto: the first of resident, sharded, "
        "streamed that has room in free memory (default auto)",
    )
    add(
        "--scratch",
        type=Path,
        metavar="DIR",
        help="where weights are streamed: folder for hidden states and refitted weights, instead of main memory, which "
        "then holds about a layer (default none: main memory, and files in the output folder once it is short)",
    )
    add(
        "--low_memory",
        action="store_true",
        help="another word for --engine streamed (default off)",
    )
    add(
        "--trust_remote_code",
        action="store_true",
        help="allow the tokenizer's own Python code to run; model code is never run (default off)",
    )


def calibration_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--dataset",
        metavar="DATA",
        help="calibration text: c4, wikitext2, ptb, pydoc and pycode (offline), self (what the dense model writes; "
        "offline), or your own file (.txt .md .jsonl .csv .parquet .arrow and others, compressed or not) or folder of "
        "files; several with commas are mixed evenly, notes.txt:0.7,self:0.3 by share (default wikitext2,self, or "
        "wikitext2 where nothing calibrates or weights are streamed)",
    )
    add(
        "--text_column",
        metavar="NAME",
        help="column that holds the text in your own JSON, CSV, parquet and arrow files (default text)",
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
        help="refit the remaining weights to the dense model on the calibration windows (default least_squares, but "
        "none with magnitude, or for a replayed plan if perplexity on --dataset is not measured)",
    )
    add(
        "--reconstruct_modules",
        choices=REPAIR_MODULES,
        help="refit all projections of a block, or only o_proj and down_proj (default all, but outputs with "
        "--reconstruct_target pruned)",
    )
    add(
        "--reconstruct_target",
        choices=REPAIR_TARGETS,
        help="what the refit aims at: stream, the dense model's residual stream; dense or pruned, the dense block's "
        "output on the dense or on the pruned stream (default stream)",
    )
    add(
        "--reconstruct_text",
        choices=REPAIR_TEXTS,
        help="mixed: also refit on shuffled tokens where the text is short, which generalises better to other text; "
        "calibration: use the calibration windows only (default mixed)",
    )


def recovery_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--recover",
        type=one_of(*RECOVERIES, alone="none"),
        metavar="LIST",
        help="train what is left towards the dense model, without labels: blocks, each block to keep the dense model's "
        "residual stream; distill, the whole model to predict what the dense one predicts; both with a comma, or none "
        "(default none)",
    )
    add(
        "--recover_tokens",
        type=number(int, 1, math.inf),
        metavar="N",
        help="tokens of calibration text that distillation trains on (default 500000, or 8000000 on a GPU)",
    )
    add(
        "--recover_lora",
        type=number(int, 1, math.inf),
        metavar="RANK",
        help="distil through LoRA adapters of this rank, merged afterwards, where the memory has no room for an "
        "optimiser of the whole model; needs peft (default none)",
    )
    add(
        "--report_to",
        type=names,
        metavar="LIST",
        help="trackers that distillation reports its loss to, as transformers names them: tensorboard, trackio, wandb "
        "and others (default none)",
    )


def output_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for everything that is written (default results/<model>/<method>_<ratio>[_<options>]_<dataset>)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace what an earlier run wrote in that folder, nothing else (default off)",
    )
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
        help="largest weight file of the saved model, such as 200MB; a larger model is split (default 5GB)",
    )
    add("--verify", action="store_true", help="reload the saved model and check it (default on)")
    add("--no_verify", dest="verify", action="store_false", help="skip that check (default off)")
    add(
        "--cache_dir",
        metavar="DIR",
        help="folder that keeps what later runs need not measure or read again, or none for no cache "
        "(default $GLOBAL_PRUNING_CACHE, or global-pruning in your cache folder)",
    )
    add("--export", choices=EXPORTS, help="also write <output>/model.gguf (f16) for llama.cpp (default none)")
    add("--no_save_model", action="store_true", help="prune and evaluate, but save no weights (default off)")


def evaluation_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--run_evaluation",
        type=one_of(*MEASURES, alone="none"),
        metavar="LIST",
        help="what to measure before and after pruning: ppl (perplexity, and the distance from the dense model), "
        "generation (repetition and end of what the models write), tasks, speed, several with commas, or none (default "
        "ppl,generation)",
    )
    add(
        "--eval_datasets",
        type=datasets,
        metavar="LIST",
        help="held-out texts for perplexity, each for itself, and for generation, separated by commas (default "
        "the held-out part of --dataset, of each of several texts)",
    )
    add(
        "--eval_elsewhere",
        metavar="DATA",
        help="text of another kind than --dataset, on which perplexity is measured too, on few windows; none for "
        "none (default pycode if --dataset is pydoc, otherwise pydoc; none with --eval_datasets)",
    )
    add(
        "--eval_seq_len",
        type=number(int, 2, math.inf),
        metavar="T",
        help="tokens per evaluation window (default 2048, or the model's context if smaller; of self at most 256)",
    )
    add(
        "--eval_samples",
        type=number(int, 1, math.inf),
        metavar="N",
        help="evaluation windows per dataset (default all, but at most 1,048,576 tokens of your own text)",
    )
    add(
        "--eval_tasks",
        type=names,
        metavar="LIST",
        help="lm-eval tasks, separated by commas; naming them runs them (default pydoc_cloze if --run_evaluation has "
        "tasks)",
    )
    add("--eval_task_path", type=Path, metavar="DIR", help="folder of local lm-eval YAML tasks (default none)")
