"""Extra loss of pruned models, this project's methods beside published ones: ``python -m benchmarks.quality``."""
