"""Programs that made what the repository ships; started by hand, never imported by the product."""
