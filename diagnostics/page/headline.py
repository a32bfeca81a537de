"""The title of a page: the main fact in one line."""

from diagnostics.run_folder import Run
from diagnostics.wording import decimal, name_layers, percent

LONGEST_NAME = 40  # characters of a list of layers that still fit into a title


def headline(run: Run) -> str:
    """``20.0 % removed; perplexity 36.9 → 39.4; layers 2 and 3 lose over half``."""
    return "; ".join(part for part in (_size(run), _cost(run), _layers(run)) if part)


def brief(perplexity: float) -> str:
    """One decimal from 10, as in a title; more precisely below."""
    return f"{perplexity:.1f}" if 10 <= perplexity < 1000 else decimal(perplexity)


def _size(run: Run) -> str:
    if run.of_total is None:
        return "Size not known"
    if run.of_total == 0:
        return "Nothing removed"
    return f"{percent(run.of_total)} {'would be removed' if run.option('dry_run') is True else 'removed'}"


def _cost(run: Run) -> str:
    dense, pruned = run.perplexity("dense"), run.perplexity("pruned")
    datasets = [name for name in dense if name in pruned]
    if not datasets:
        return "loss after pruning not measured"
    name = datasets[0]
    where = f" on {name}" if len(datasets) > 1 else ""
    return f"perplexity{where} {brief(dense[name])} → {brief(pruned[name])}"


def _layers(run: Run) -> str:
    extreme, threshold = run.extreme_layers, run.threshold
    if extreme is None or threshold is None or run.of_total == 0:
        return ""
    much = "half" if threshold == 0.5 else percent(threshold, 0)
    if not extreme:
        return f"no layer loses over {much}"
    names = name_layers(extreme)
    names = names if len(names) <= LONGEST_NAME else f"{len(extreme)} layers"
    return f"{names} {'loses' if len(extreme) == 1 else 'lose'} over {much}"
