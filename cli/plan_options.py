"""The options that decide what goes: budget and criterion, transforms, correction, remedies, protection, allocation."""

import argparse
import math

from cli.values import number, tau
from core.criteria import CRITERIA

NORM_METHODS = ("log", "minmax", "zscore", "sqrt")


def pruning_options(group: argparse._ArgumentGroup) -> None:
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


def score_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    percent = number(float, 0, 100)
    add("--enable_grad_clip", action="store_true", help="clip scores to global percentiles (default off)")
    add("--clip_percentile_low", type=percent, default=5.0, metavar="P", help="percent (default 5.0)")
    add("--clip_percentile_high", type=percent, default=95.0, metavar="P", help="percent (default 95.0)")
    add("--enable_grad_norm", action="store_true", help="normalise scores inside each layer (default off)")
    add("--norm_method", choices=NORM_METHODS, default="log", help="how (default log)")


def correction_options(group: argparse._ArgumentGroup) -> None:
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


def remedy_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--remedy",
        choices=("advise", "auto"),
        default="advise",
        help="name remedies, or try them, measure the loss of each plan on calibration text set aside and prune with "
        "the best; what the command line sets is the baseline, which the best never loses to there (default advise)",
    )


def allocation_options(group: argparse._ArgumentGroup) -> None:
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
