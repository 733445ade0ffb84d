"""Pages of an experiment: `report.json` and `report.html`."""
