"""Samplers: canvases are filled step by step by whatever predicts their masked tokens; no trainer is known here."""
