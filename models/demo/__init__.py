"""The embedded model, the script that trained it, and its shape."""
