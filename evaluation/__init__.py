"""Evaluation: perplexity on held-out windows, lm-eval tasks, size and speed of the dense and the pruned model."""
