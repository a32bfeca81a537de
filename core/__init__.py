"""The nouns every stage shares: errors, groups, windows, plans, atomic files. Arrays are numpy's."""
