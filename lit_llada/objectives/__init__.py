"""Pure functions on tensors: noise, losses, estimators. They see per-token losses, never logits or modules."""
