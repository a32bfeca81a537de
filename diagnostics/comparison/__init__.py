"""Several runs side by side: what they cost, what they took from each layer, what they share. No torch."""
