"""The operating system: errors and exit codes, signals, child processes, disk, progress lines. Imports nothing else."""
