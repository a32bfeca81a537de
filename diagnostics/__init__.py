"""What happened to each layer and why, what to try next; files, pictures and text that say so. No torch."""
