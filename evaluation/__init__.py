"""Evaluation of the dense and the pruned model: perplexity, their distance, what they write, tasks, size, speed."""
