"""Text in, token shards out: the parts of the data stage."""
