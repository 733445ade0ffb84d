"""A model folder as the hub has it: small random weights of any family, with a trained tokenizer of its own."""

from pathlib import Path
from typing import Any

from data_corpus import prose
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model.config import ModelConfig
from model.hf import save_folder
from model.transformer import Transformer

TOKENS = 400  # of the tokenizer, which the data stage would not have trained: the model has more rows


def write_public_model(folder: Path, shape: dict[str, Any]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=TOKENS, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([prose(n) for n in range(300, 320)], trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "own-tokenizer.json"))
    config = ModelConfig(**shape).validate()
    state = Transformer(config).initialize(1).state_dict()
    save_folder(folder, state, config, folder / "own-tokenizer.json", "<|endoftext|>")
