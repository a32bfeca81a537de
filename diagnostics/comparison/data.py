"""The comparison as data: JSON with everything, CSV with one row a run. Ratios are fractions, null is not measured."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diagnostics.comparison.ranking import Ranking
from diagnostics.comparison.runs import Named, missing
from diagnostics.comparison.shared import Overlap
from diagnostics.comparison.tables import WATCHED_LAYERS
from diagnostics.run_folder import at, number

SCHEMA_VERSION = 1


def is_comparison(path: Path) -> bool:
    """Whether a comparison wrote this file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"schema_version", "runs", "rankings"} <= content.keys()


def as_json(runs: Sequence[Named], ranked: Sequence[Ranking], shared: Sequence[Overlap]) -> dict[str, Any]:
    """The content of comparison.json; the same keys in the same order whatever the runs hold."""
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [_run(item) for item in runs],
        "rankings": [
            {
                "dataset": ranking.dataset,
                "removed_of_total": ranking.of_total,
                "best": ranking.best,
                "winners": list(ranking.winners),
                "order": [
                    {"name": name, "perplexity": value}
                    for name, value in zip(ranking.names, ranking.perplexities, strict=True)
                ],
            }
            for ranking in ranked
        ],
        "shared_removals": [
            {
                "first": pair.first,
                "second": pair.second,
                "jaccard": pair.total,
                "jaccard_by_chance": pair.by_chance,
                "jaccard_by_layer": list(pair.by_layer),
            }
            for pair in shared
        ],
    }


def _run(item: Named) -> dict[str, Any]:
    run = item.run
    dense, pruned = run.parameters
    extreme = run.extreme_layers
    return {
        "name": item.name,
        "schema_version": at(run.record, "schema_version"),
        "base_model": run.option("base_model"),
        "criterion": run.option("importance_method"),
        "recover": None if run.recovery is None else list(run.recovery) or ["none"],
        "parameters": {"dense": dense, "pruned": pruned},
        "achieved": {"of_total": run.of_total, "of_prunable": run.of_prunable},
        "perplexity": _both(run.perplexity("dense"), run.perplexity("pruned")),
        "perplexity_on_the_way": run.on_the_way,
        "tasks": _both({name: value for name, (value, _) in run.tasks("dense").items()},
                       {name: value for name, (value, _) in run.tasks("pruned").items()}),
        "distance": {
            name: {"kl_nats_per_token": kl, "top1_agreement": same} for name, (kl, same) in run.distance.items()
        },
        "generation": _both(run.generation("dense"), run.generation("pruned")),
        "layers": {
            "rates": list(run.rates),
            "rate_spread": run.spread,
            "extreme_threshold": run.threshold,
            "extreme_layers": None if extreme is None else list(extreme),
        },
        "gradient_mean_ratio": number(run.diagnosis, "gradient_statistics", "mean_ratio"),
        "score_ratio": {
            when: number(run.diagnosis, "score_statistics", when, "score_ratio") for when in ("before", "after")
        },
        "health": item.health.verdicts | {"healthy": item.health.healthy},
        "missing": missing(run),
    }  # fmt: skip


def _both(dense: Mapping[str, float], pruned: Mapping[str, float]) -> dict[str, dict[str, float | None]]:
    return {name: {"dense": dense.get(name), "pruned": pruned.get(name)} for name in {**dense, **pruned}}


def as_csv(data: Mapping[str, Any]) -> str:
    """One row a run; empty cells where nothing was measured. data: what ``as_json`` made."""
    rows = [_flat(run) | _best(run["name"], data["rankings"]) for run in data["runs"]]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _best(name: str, ranked: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Whether this run is the best of its size, by dataset."""
    datasets = dict.fromkeys(ranking["dataset"] for ranking in ranked)
    won = {ranking["dataset"] for ranking in ranked if name in ranking["winners"]}
    return {f"best_{dataset}": dataset in won for dataset in datasets}


def _flat(run: Mapping[str, Any]) -> dict[str, Any]:
    rates = run["layers"]["rates"]
    row = {key: run[key] for key in ("name", "base_model", "criterion")}
    row["recover"] = None if run["recover"] is None else ",".join(run["recover"])
    row |= {f"parameters_{side}": count for side, count in run["parameters"].items()}
    row |= {f"achieved_{key}": value for key, value in run["achieved"].items()}
    for group in ("perplexity", "tasks", "generation"):
        for name, sides in run[group].items():
            stem = f"{group}_{name}".removeprefix("tasks_").replace(" ", "_")
            row |= {f"{stem}_{side}": value for side, value in sides.items()}
    for name, steps in run["perplexity_on_the_way"].items():
        row |= {f"perplexity_{name}_{step}".replace(" ", "_"): value for step, value in steps.items()}
    for name, measures in run["distance"].items():
        row |= {f"{key}_{name}".replace(" ", "_"): value for key, value in measures.items()}
    row |= {f"layer_{layer}_rate": rates[layer] if layer < len(rates) else None for layer in WATCHED_LAYERS}
    row["rate_spread"] = run["layers"]["rate_spread"]
    extreme = run["layers"]["extreme_layers"]
    row["num_extreme_layers"] = None if extreme is None else len(extreme)
    row["gradient_mean_ratio"] = run["gradient_mean_ratio"]
    row |= {f"score_ratio_{when}": value for when, value in run["score_ratio"].items()}
    row |= run["health"]
    return row | {"missing": "; ".join(run["missing"])}
