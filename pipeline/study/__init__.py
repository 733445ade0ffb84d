"""Studies: one base experiment, named overrides along axes, equal budgets, and what the combinations show."""
