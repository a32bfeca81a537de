"""Measured costs, each by a command that docs/benchmarks.md quotes beside its figures."""
