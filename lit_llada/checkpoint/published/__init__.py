"""Published formats: LLaDA, LLaDA-MoE, and the Llama family to start from; read and written."""
