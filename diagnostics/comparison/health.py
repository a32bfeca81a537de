"""The three criteria of health, each on its own: which one a run fails is what its next command depends on."""

from dataclasses import dataclass

from diagnostics.findings.quantities import TOLERANCE
from diagnostics.findings.rules_of_rates import EXTREME_LAYERS, HEALTHY_LAYERS, HEALTHY_SPREAD
from diagnostics.run_folder import Run

CRITERIA = {
    "layers_2_4_not_extreme": "layers 2-4 not extreme",
    "few_extreme_layers": f"fewer than {EXTREME_LAYERS} extreme",
    "even_rates": f"spread under {100 * HEALTHY_SPREAD:.0f} points",
}


@dataclass(frozen=True)
class Health:
    """True, False, or None where a run does not tell."""

    layers_2_4_not_extreme: bool | None
    few_extreme_layers: bool | None
    even_rates: bool | None

    @property
    def healthy(self) -> bool | None:
        """False as soon as one criterion fails; None where none fails but one is unknown."""
        verdicts = self.verdicts.values()
        return False if False in verdicts else None if None in verdicts else True

    @property
    def verdicts(self) -> dict[str, bool | None]:
        return {name: getattr(self, name) for name in CRITERIA}


def health(run: Run) -> Health:
    """Judged as the finding ``healthy`` is: extreme layers, and the spread of rates over unfrozen layers.

    A run that removed nothing tells nothing.
    """
    if run.of_total == 0:
        return Health(None, None, None)
    extreme, spread = run.extreme_layers, run.spread
    return Health(
        layers_2_4_not_extreme=None if extreme is None else not any(layer in HEALTHY_LAYERS for layer in extreme),
        few_extreme_layers=None if extreme is None else len(extreme) < EXTREME_LAYERS,
        even_rates=None if spread is None else spread < HEALTHY_SPREAD - TOLERANCE,
    )
