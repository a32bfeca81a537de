"""The options that decide what goes: budget and criterion, transforms, correction, remedies, protection, allocation."""

import argparse
import math

from cli.values import number, tau
from core.criteria import CRITERIA
from core.names import GRADIENT_REDUCTIONS, NORM_METHODS, PRIORS, RATIO_OF, TARGETS


def pruning_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    ratio = number(float, 0, 1, open_low=True, open_high=True)
    add(
        "--pruning_ratio",
        type=ratio,
        metavar="R",
        help="fraction of the parameters to remove, above 0 and below 1 (default 0.2)",
    )
    add(
        "--ratio_of",
        choices=RATIO_OF,
        help="what the ratio is a fraction of: all parameters, or only the prunable ones (default total)",
    )
    add(
        "--importance_method",
        choices=CRITERIA,
        help="how groups are scored; obs accounts for the repair that follows (default obs)",
    )
    add(
        "--gradient_reduction",
        choices=GRADIENT_REDUCTIONS,
        help="for taylor*: average |w g| over sequences, or take |w sum g|, which keeps one copy of all gradients in "
        "memory (default sequence)",
    )
    whole = number(int, 0, math.inf)
    add(
        "--freeze_first_n_layers",
        type=whole,
        metavar="N",
        help="number of first layers that are left untouched (default 0)",
    )
    add(
        "--freeze_last_n_layers",
        type=whole,
        metavar="N",
        help="number of last layers that are left untouched (default 0)",
    )
    add(
        "--max_block_ratio",
        type=number(float, 0, 1, open_low=True),
        metavar="R",
        help="largest fraction of a block's groups that may be removed (default 1.0: down to the floors)",
    )
    one = number(int, 1, math.inf)
    add(
        "--min_kv_heads",
        type=one,
        metavar="K",
        help="smallest number of KV heads that a layer keeps (default 1)",
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
        metavar="E",
        help="remove a layer entirely when it would keep less than this fraction of its parameters, then plan again "
        "(default 0: never)",
    )
    add(
        "--target",
        choices=TARGETS,
        help="plan only shapes that this runtime serves (default hf: every layer its own widths)",
    )
    add(
        "--tensor_parallel",
        type=one,
        metavar="N",
        help="with vllm or stock: number of GPUs that share the heads and channels of a layer (default 1)",
    )


def score_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    percent = number(float, 0, 100)
    add(
        "--enable_grad_clip",
        action="store_true",
        help="clip scores to two percentiles of the whole model (default off)",
    )
    add(
        "--clip_percentile_low",
        type=percent,
        metavar="P",
        help="lower percentile that scores are clipped to (default 5.0)",
    )
    add(
        "--clip_percentile_high",
        type=percent,
        metavar="P",
        help="upper percentile that scores are clipped to (default 95.0)",
    )
    add("--enable_grad_norm", action="store_true", help="normalise scores inside each layer (default off)")
    add("--norm_method", choices=NORM_METHODS, help="normalisation formula (default log)")


def correction_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--temperature",
        type=number(float, 0, math.inf),
        metavar="T",
        help="multiply each score by ln(1 + prior)^T, the prior being that of its block; 0 switches this off "
        "(default 0.0)",
    )
    add(
        "--tau",
        type=tau,
        metavar="X",
        help="threshold in nats per token (a number, inf or auto): a layer whose prior is below it uses that prior "
        "for both of its blocks (default 0.0: every block uses its own)",
    )
    add(
        "--prior",
        choices=PRIORS,
        help="how the prior is measured: loss increase without the block, or 1 - cosine similarity of the residual "
        "stream before and after it (default loss)",
    )
    add(
        "--prior_samples",
        type=number(int, 1, math.inf),
        metavar="N",
        help="number of calibration windows that the prior is measured on (default 32)",
    )


def remedy_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--remedy",
        choices=("advise", "auto"),
        help="advise: name remedies in the findings; auto: try them, measure the loss of each plan on calibration text "
        "that is set aside, and prune with the best plan (never worse than that of your own settings on that text) "
        "(default advise)",
    )


def allocation_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--protect",
        choices=("none", "outliers", "measured"),
        help="outliers: never prune a channel whose output norm is over 30 times its block's median; measured "
        "(experimental): prune less from blocks whose measured loss is far above what their scores promised, and more "
        "elsewhere (default none)",
    )
    add(
        "--allocate",
        choices=("global", "searched"),
        help="global: spend the budget by one ranking of all scores; searched (experimental): by the measured loss of "
        "each block at several widths, kept only if it loses less (default global)",
    )
    add(
        "--minutes",
        type=number(float, 0, math.inf, open_low=True, open_high=True),
        metavar="M",
        help="wall-clock minutes that --allocate searched may take; it stops between two levels (default 10)",
    )
    add(
        "--rounds",
        type=number(int, 1, math.inf),
        metavar="N",
        help="prune in N steps and measure importance again after each; kept only if it loses less than pruning in "
        "one step (default 1)",
    )
