"""Pages of an experiment: `report.json` and `report.html`. May import every folder but `studies`, and no verb."""
