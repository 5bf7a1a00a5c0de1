"""How a net is trained: optimisers, schedules, sharding, strategies. Knows a net by its blocks, not diffusion."""
