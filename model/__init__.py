"""The network: plain PyTorch. It knows no trainer and no files of text."""
