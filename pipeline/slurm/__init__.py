"""Job files for Slurm and the commands that send and list them: what `submit` and `study --slurm` use.

Imports system and storage only.
"""
