"""What a plan looks like, judged: numbers by layer, rules, findings with the remedies they name."""
