"""A run: what must hold before it starts."""
