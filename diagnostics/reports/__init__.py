"""What a run tells: the files of ``analysis/``, pictures, the last words on the console."""
