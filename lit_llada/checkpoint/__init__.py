"""Checkpoints of runs and of published models: found, read into a net, described, written."""
