"""The planner against a walk that takes one step at a time, on random architectures, rankings and limits."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BudgetError
from core.groups import ATTENTION, MLP, Architecture, LayerShape
from pruning.planning import Limits, plan_removal, removable_params


@dataclass
class Naive:
    """The definition, one step at a time; as slow as it looks."""

    model: Architecture
    order: list[int]
    limits: Limits

    def frozen(self, layer: int) -> bool:
        return layer < self.limits.freeze_first or layer >= self.model.num_layers - self.limits.freeze_last

    def guarded(self, layer: int) -> bool:
        """Whether protection or a cap concerns the layer, so that it is never removed whole."""
        caps = self.limits.caps[2 * layer : 2 * layer + 2]
        capped = any(cap < width for cap, width in zip(caps, self.model.layers[layer].widths, strict=False))
        return capped or any(self.model.groups.layer[row] == layer for row in self.limits.protected)

    def steps(self) -> list[list[int]]:
        """Rows of every step of every block, legal or not, in the order of the walk; protected rows come last."""
        steps = []
        self.order.sort(key=lambda row: row in self.limits.protected)
        for block in range(2 * self.model.num_layers):
            rows = [row for row in self.order if self.model.groups.block[row] == block]
            size = self.limits.round_to if block % 2 == MLP else self.limits.kv_round_to
            while rows:
                count = len(rows) % size or size
                steps.append(rows[:count])
                rows = rows[count:]
        return sorted(steps, key=lambda rows: self.order.index(rows[-1]))

    def legal(self, rows: list[int], out: set[int]) -> bool:
        """Whether floors, caps and frozen layers let this step go when ``out`` has gone."""
        layer, kind = int(self.model.groups.layer[rows[0]]), int(self.model.groups.kind[rows[0]])
        width = self.model.layers[layer].widths[kind]
        gone = sum(self.model.groups.block[row] == 2 * layer + kind for row in out) + len(rows)
        heads = max(min(self.limits.min_kv_heads, width), self.limits.kv_round_to)
        floor = self.limits.round_to if kind == MLP else heads
        capped = gone > Fraction(str(self.limits.max_block_ratio)) * width
        if self.limits.caps:
            capped |= gone > self.limits.caps[2 * layer + kind]
        if set(rows) & set(self.limits.protected):
            return False
        return not self.frozen(layer) and not capped and width - gone >= floor

    def price(self, rows: Iterable[int]) -> int:
        return sum(int(self.model.groups.cost[row]) for row in rows)

    def walk(self, budget: int, removed_layers: set[int]) -> set[int]:
        out: set[int] = set()
        for rows in self.steps():
            fits = self.price(rows) <= budget and self.legal(rows, out)
            if fits and self.model.groups.layer[rows[0]] not in removed_layers:
                out |= set(rows)
                budget -= self.price(rows)
        return out

    def plan(self, budget: int) -> tuple[set[int], set[int]]:
        """Rows removed one by one, and layers removed whole."""
        removed_layers: set[int] = set()
        while True:
            left = budget - sum(self.model.layers[layer].total_params for layer in removed_layers)
            out = self.walk(left, removed_layers)
            kept = []
            for layer, shape in enumerate(self.model.layers):
                lost = self.price(row for row in out if self.model.groups.layer[row] == layer)
                kept.append((Fraction(shape.prunable_params - lost, shape.prunable_params), layer))
            before = len(removed_layers)
            for share, layer in sorted(kept):
                params = self.model.layers[layer].total_params
                spare = len(removed_layers) + 1 < self.model.num_layers
                may_go = not self.frozen(layer) and not self.guarded(layer)
                wanted = share < Fraction(str(self.limits.epsilon)) and may_go
                if wanted and spare and params <= left and layer not in removed_layers:
                    removed_layers.add(layer)
                    left -= params
            if len(removed_layers) == before:
                return out, removed_layers


@st.composite
def cases(draw: st.DrawFn) -> tuple[Architecture, list[int], Limits, float]:
    shapes = []
    for _ in range(draw(st.integers(1, 4))):
        heads, channels = draw(st.integers(1, 4)), draw(st.integers(1, 9))
        kv, channel, extra = draw(st.integers(1, 30)), draw(st.integers(1, 9)), draw(st.integers(0, 3))
        shapes.append(LayerShape(2 * heads, heads, 4, channels, kv, channel, extra, extra, 2))
    model = Architecture("llama", 8, draw(st.integers(0, 90)) + sum(s.total_params for s in shapes), tuple(shapes))
    widths = [width for shape in shapes for width in shape.widths]
    limits = Limits(
        freeze_first=draw(st.sampled_from([0, 0, 0, 1])),
        freeze_last=draw(st.sampled_from([0, 0, 0, 1])),
        max_block_ratio=draw(st.sampled_from([1.0, 1.0, 0.7, 0.5, 0.29])),
        min_kv_heads=draw(st.sampled_from([1, 1, 2, 8])),
        round_to=draw(st.sampled_from([1, 1, 2, 3, 4])),
        epsilon=draw(st.sampled_from([0.0, 0.0, 0.3, 0.6, 0.9])),
        kv_round_to=draw(st.sampled_from([1, 1, 2, 3])),
        protected=tuple(draw(st.sets(st.integers(0, len(model.groups) - 1), max_size=draw(st.sampled_from([0, 3]))))),
        caps=tuple(draw(st.integers(0, width)) for width in widths) if draw(st.booleans()) else (),
    )
    order = draw(st.permutations(range(len(model.groups))))
    return model, order, limits, draw(st.floats(0.01, 0.99))


@settings(max_examples=300, deadline=None)
@given(case=cases(), ratio_of=st.sampled_from(["total", "prunable"]))
def test_plan_equals_the_naive_walk_and_spends_the_budget(
    case: tuple[Architecture, list[int], Limits, float], ratio_of: str
) -> None:
    model, order, limits, ratio = case
    whole = model.total_params if ratio_of == "total" else model.prunable_params
    budget, naive = int(Fraction(repr(ratio)) * whole), Naive(model, order, limits)
    reachable: set[int] = naive.walk(10**9, set())
    assert removable_params(model, limits) == naive.price(reachable)
    if budget > naive.price(reachable):
        with pytest.raises(BudgetError):
            plan_removal(model, np.array(order), ratio=ratio, ratio_of=ratio_of, limits=limits)
        return
    plan = plan_removal(model, np.array(order), ratio=ratio, ratio_of=ratio_of, limits=limits)
    out, removed_layers = naive.plan(budget)
    assert plan.removed_layers == tuple(sorted(removed_layers))
    one_by_one = np.flatnonzero(~plan.keep & ~np.isin(plan.groups.layer, plan.removed_layers))
    assert set(one_by_one.tolist()) == out
    # What the plan promises, counted without either walk.
    spent = naive.price(one_by_one) + sum(model.layers[layer].total_params for layer in plan.removed_layers)
    assert plan.removed_params == spent == model.total_params - plan.pruned_architecture.total_params
    assert (plan.budget_params, plan.gap_reason == "") == (budget, spent == budget)
    assert spent <= budget
    for layer in plan.remaining_layers:
        assert min(len(plan.kept(layer, kind)) for kind in (ATTENTION, MLP)) > 0
    left = [rows for rows in naive.steps() if plan.groups.layer[rows[0]] in plan.remaining_layers]
    legal = [naive.price(rows) for rows in left if not out & set(rows) and naive.legal(rows, out)]
    assert all(price > budget - spent for price in legal)
    if plan.gap_reason:
        assert f"{min(legal)} parameters" in plan.gap_reason
