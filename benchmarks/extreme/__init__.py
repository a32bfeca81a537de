"""A model in which a global ranking prunes layers that are needed, and the way out of it (docs/extreme-pruning.md)."""
