"""The LightningModules: thin, one per way of training, all on the same net."""
