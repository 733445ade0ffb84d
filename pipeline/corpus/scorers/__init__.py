"""Quality scorers: features, the linear model, training it, other programs' models."""
