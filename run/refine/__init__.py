"""Refinements: each looks at a ranked plan and proposes a better one, by loss on judging windows."""

from run.refine.driver import Refined, Refinement, refine, refinements

__all__ = ["Refined", "Refinement", "refine", "refinements"]
