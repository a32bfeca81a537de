"""The command line: options grouped by stage, checks that need no model, the output folder."""
