"""How replies are sampled, and whether they come from a store."""
