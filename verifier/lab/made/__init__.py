"""Real models of every kind, made from the embedded one by recipes: small ones, that speak."""
