"""lit_llada: a Lightning-based, modular experiment kit for masked diffusion language models."""

__version__ = "0.1.0"
