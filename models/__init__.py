"""Models: a name or folder becomes a loaded model, its tokenizer and its Architecture; a plan becomes a checkpoint."""
