"""From text to token shards: one module a step of the data stage. May import `pages`, `storage` and below."""
