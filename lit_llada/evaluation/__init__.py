"""Evaluations of a net, by its answers or its estimates; no trainer is known here."""
