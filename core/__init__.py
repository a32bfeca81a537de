"""The nouns every stage shares: errors, groups, windows, plans, and atomic files. No torch here."""
