"""Job files for Slurm: what `submit` and `study --slurm` send."""
