"""What a run costs on one GPU, beside plain backward and the arithmetic it needs: ``python -m benchmarks.gpu``."""
