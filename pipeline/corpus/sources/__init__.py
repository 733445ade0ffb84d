"""Where text comes from: one module a source, and `SOURCES`, which maps a config name to its class."""
