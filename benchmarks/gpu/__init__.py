"""``python -m benchmarks.gpu``: what this kit does on one card, checked and measured in a few minutes."""
