"""What surrounds the stages of a run: the folder it writes to, and how it ends."""
