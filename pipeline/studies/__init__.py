"""Members of one study under equal budgets: running them and what they show."""
