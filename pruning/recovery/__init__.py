"""Recovery after surgery: what is left is trained towards the dense model, without labels."""
