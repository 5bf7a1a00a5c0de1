"""How does a mask predictor write? Generators of states over a canvas; they ask for nothing but a Denoiser."""
