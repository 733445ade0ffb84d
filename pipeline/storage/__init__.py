"""Folders made once: steps, manifests, locks, the ledger, `runs/<name>/`, hub models. Imports `config` and below."""
