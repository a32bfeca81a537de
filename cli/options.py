"""Every option, grouped by stage, with its unit and default; checked before anything heavy is imported."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cli.together import check_together
from cli.values import batch_size, names, number, one_of, shard_size, tau

CRITERIA = ("taylor", "taylor_2nd", "fisher", "obs", "wanda", "magnitude")
NORM_METHODS = ("log", "minmax", "zscore", "sqrt")
MEASURES = ("ppl", "tasks", "speed")

DESCRIPTION = (
    "Make a Hugging Face causal LM smaller by global structured pruning: rank all attention KV groups and MLP "
    "channels together, remove the lowest for real, explain what went and why, and save a model that loads."
)
EPILOG = """commands that work:
  # the embedded model and text; no network, no GPU
  %(prog)s --base_model demo --pruning_ratio 0.2 --dataset pydoc

  # look first: plan, findings and pictures, no pruned model
  %(prog)s --base_model demo --pruning_ratio 0.5 --ratio_of prunable --dataset pydoc --dry_run --output results/look

  # the remedy for layers whose gradients are on another scale, plus the block correction
  %(prog)s --base_model demo --dataset pydoc --enable_grad_norm --norm_method log --temperature 1.0 --tau 0.0 \\
      --output results/remedied

  # replay a saved plan
  %(prog)s --base_model demo --dataset pydoc --plan results/look/analysis/pruning_plan.json --output results/replayed

  # a hub model on a GPU (network needed)
  %(prog)s --base_model mistralai/Mistral-7B-v0.3 --pruning_ratio 0.2 --importance_method taylor --dataset c4

exit codes: 0 done; 2 the input cannot work (one line says why); 3 NaN or Inf while measuring;
4 the saved model failed its own proof; 130 interrupted
"""


class OneLineParser(argparse.ArgumentParser):
    """A wrong option is one line on stderr and exit code 2; the usage is for those who ask for it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help lists all options\n")


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="run_global_pruning.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _model_options(parser.add_argument_group("model"))
    _pruning_options(parser.add_argument_group("pruning"))
    _score_options(parser.add_argument_group("score transforms (clip, then normalise inside each layer)"))
    _correction_options(parser.add_argument_group("correction by block (after normalising, before ranking)"))
    _remedy_options(parser.add_argument_group("remedies"))
    _allocation_options(parser.add_argument_group("protection and allocation (by loss on calibration text set aside)"))
    _calibration_options(parser.add_argument_group("calibration"))
    _repair_options(parser.add_argument_group("repair (after the plan, before surgery)"))
    _output_options(parser.add_argument_group("output"))
    _evaluation_options(parser.add_argument_group("evaluation"))
    return parser


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check; leaves through ``parser.error`` (exit code 2) with one line when a value cannot work."""
    parser = build_parser()
    arguments = list(sys.argv[1:] if argv is None else argv)
    _refuse_blank_arguments(parser, arguments)
    options = parser.parse_args(arguments)
    options.given = {word.split("=")[0].lstrip("-") for word in arguments if word.startswith("--")}
    options.argv = arguments
    try:
        check_together(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def _refuse_blank_arguments(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    for index, word in enumerate(arguments):
        if word and not word.strip():
            after = f"after '{arguments[index - 1]}'" if index else "as the first argument"
            parser.error(
                f"an argument made of blanks was given {after}: a space or a comment follows a backslash at the end of "
                "a line in the shell command, which cuts the command there; end the line with the backslash itself"
            )


def _model_options(group: argparse._ArgumentGroup) -> None:
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


def _pruning_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    ratio = number(float, 0, 1, open_low=True, open_high=True)
    add(
        "--pruning_ratio",
        type=ratio,
        default=0.2,
        metavar="R",
        help="fraction to remove, in (0, 1) (default 0.2)",
    )
    add(
        "--ratio_of",
        choices=("total", "prunable"),
        default="total",
        help="what the ratio counts: all parameters, or those that groups hold (default total)",
    )
    add("--importance_method", choices=CRITERIA, default="obs", help="criterion; obs knows the repair (default obs)")
    add(
        "--gradient_reduction",
        choices=("sequence", "sum"),
        default="sequence",
        help="taylor: mean of |w g| over sequences, or |w sum g|, which keeps all gradients (default sequence)",
    )
    whole = number(int, 0, math.inf)
    add(
        "--freeze_first_n_layers",
        type=whole,
        default=0,
        metavar="N",
        help="layers left untouched (default 0)",
    )
    add("--freeze_last_n_layers", type=whole, default=0, metavar="N", help="layers left untouched (default 0)")
    add(
        "--max_block_ratio",
        type=number(float, 0, 1, open_low=True),
        default=1.0,
        metavar="R",
        help="largest fraction of a block's groups that may go (default 1.0: down to the floors)",
    )
    one = number(int, 1, math.inf)
    add(
        "--min_kv_heads",
        type=one,
        default=1,
        metavar="K",
        help="KV heads every layer keeps at least (default 1)",
    )
    add(
        "--round_to",
        type=one,
        metavar="C",
        help="keep MLP widths at multiples of C channels (default 64 where layers have 1024 channels or more, else 1)",
    )
    add(
        "--epsilon",
        type=number(float, 0, 1, open_high=True),
        default=0.0,
        metavar="E",
        help="remove a layer whole when it would keep less than this fraction, then plan again (default 0: never)",
    )
    add(
        "--target",
        choices=("hf", "stock", "vllm", "llama.cpp"),
        default="hf",
        help="plan only shapes that this runtime serves (default hf: every layer its own widths)",
    )
    add(
        "--tensor_parallel",
        type=one,
        default=1,
        metavar="N",
        help="vllm, stock: GPUs that share the KV groups and channels of a layer (default 1)",
    )


def _score_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    percent = number(float, 0, 100)
    add("--enable_grad_clip", action="store_true", help="clip scores to global percentiles (default off)")
    add("--clip_percentile_low", type=percent, default=5.0, metavar="P", help="percent (default 5.0)")
    add("--clip_percentile_high", type=percent, default=95.0, metavar="P", help="percent (default 95.0)")
    add("--enable_grad_norm", action="store_true", help="normalise scores inside each layer (default off)")
    add("--norm_method", choices=NORM_METHODS, default="log", help="how (default log)")


def _correction_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--temperature",
        type=number(float, 0, math.inf),
        default=0.0,
        metavar="T",
        help="multiply scores by ln(1 + prior)^T; 0 switches the correction off (default 0.0)",
    )
    add(
        "--tau",
        type=tau,
        default=0.0,
        metavar="X",
        help="nats/token: layers whose prior is below X use it for both blocks; a number, inf or auto (default 0.0: "
        "every block its own)",
    )
    add(
        "--prior",
        choices=("loss", "similarity"),
        default="loss",
        help="measured loss increase without the block, or 1 - cosine in one pass (default loss)",
    )
    add(
        "--prior_samples",
        type=number(int, 1, math.inf),
        default=32,
        metavar="N",
        help="calibration windows used for the prior (default 32)",
    )


def _remedy_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--remedy",
        choices=("advise", "auto"),
        default="advise",
        help="name remedies, or try them, measure the loss of each plan on calibration text set aside and prune with "
        "the best; what the command line sets is the baseline, which the best never loses to there (default advise)",
    )


def _allocation_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--protect",
        choices=("none", "outliers", "measured"),
        default="none",
        help="outliers: never prune a channel whose output norm is over 30 times its block's median; measured: cap "
        "blocks that alone lose far more than their scores promised, and spend the budget elsewhere (default none)",
    )
    add(
        "--allocate",
        choices=("global", "searched"),
        default="global",
        help="spend the budget by one ranking of all scores, or by the measured loss of each block at several widths; "
        "searched is kept only where it loses less (default global)",
    )
    add(
        "--minutes",
        type=number(float, 0, math.inf, open_low=True, open_high=True),
        default=10.0,
        metavar="M",
        help="wall-clock minutes for --allocate searched, cut after a whole level (default 10)",
    )
    add(
        "--rounds",
        type=number(int, 1, math.inf),
        default=1,
        metavar="N",
        help="prune in N steps with importance measured again after each; kept only where it loses less than one step "
        "(default 1)",
    )


def _calibration_options(group: argparse._ArgumentGroup) -> None:
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


def _repair_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--reconstruct",
        choices=("none", "least_squares"),
        help="refit o_proj and down_proj on the calibration windows to the dense model's outputs (default "
        "least_squares where another step reads that text and holds the model, else none)",
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
        help="refit on calibration windows and on as many with their tokens in random order, which other text "
        "gains by, or on the windows alone (default mixed)",
    )


def _output_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="written to exactly this folder (default results/<model>/<method>_T<temperature>_tau<tau>_<dataset>)",
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


def _evaluation_options(group: argparse._ArgumentGroup) -> None:
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
