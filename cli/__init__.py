"""The command line: options grouped by stage, checks and steps, the output folder."""
