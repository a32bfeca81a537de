"""Deciding what leaves (planning, pure numpy) and taking it out (surgery)."""
