"""The verbs of `hornbook`, one file each; folders hold the parts that verbs share, each a layer (docs/design.md)."""
