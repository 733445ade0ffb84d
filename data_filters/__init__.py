"""Which text gets in. CPU only, no torch; imports nothing of hornbook's `pipeline` or `model`."""
