"""A chat model as transformers 5 saves it, and a Llama-3-like tokenizer: both small, neither with our conventions."""

from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = "{# tools #}" + CHATML
SHAPE: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 128,
}  # fmt: skip
TEXT = "".join(f"{a}{b}{c} " for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwxyz")


def tokenizer_with(added: list[str], size: int, first: list[str]):
    """A byte-level BPE with `first` as its first ids, `size` entries, and `added` special tokens behind them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=first, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    assert tokenizer.get_vocab_size() == size
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    return tokenizer


def save_chat_tokenizer(folder: Path, chat_template: Any = CHATML, **names: str) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = tokenizer_with(["<|im_start|>", "<|pad|>", "<|im_end|>", "<|tool_end|>"], 498, ["<|endoftext|>"])
    names = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "bos_token": "<|im_start|>", **names}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat_template, **names).save_pretrained(folder)


def save_chat_model(folder: Path, eos_token_id=(500, 0), pad_token_id=499, chat_template=CHATML) -> None:
    """`<|endoftext|>` is 0, `<|im_start|>` 498, `<|pad|>` 499, `<|im_end|>` 500."""
    import torch
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    ids = {"bos_token_id": 498, "eos_token_id": list(eos_token_id), "pad_token_id": pad_token_id}
    model = PhiForCausalLM(PhiConfig(**SHAPE, **ids, partial_rotary_factor=0.5))
    model.generation_config.eos_token_id = list(eos_token_id)
    model.save_pretrained(folder)
    save_chat_tokenizer(folder, chat_template)


def save_llama3_tokenizer(folder: Path, eos_token: str = "<|end_of_text|>") -> None:
    """`<|begin_of_text|>` is 0, `<|end_of_text|>` 1, `<|eot_id|>` 2; a text begins with the first of them."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = tokenizer_with([], 500, ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token=eos_token
    ).save_pretrained(folder)
