"""What every part of the corpus needs: documents and files of them, compression, JSON lines, tokenizer, shards.

May import `pipeline.storage` and below.
"""
