"""A model whose every step takes a real engine on a CPU some time, and that says nothing.

    python random_model.py TOKENIZER_FOLDER FOLDER

Seeded random weights, a Llama of about 90 million; run by the engine's own environment. The rows
of tokens that alone are no text (special ones, parts of characters) are nought: the greedy choice
falls on none of them, so that each token is an event with text.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

WINDOW = 1024


def main(tokenizer_folder: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=10,
        num_attention_heads=12,
        num_key_value_heads=6,
        max_position_embeddings=WINDOW,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    texts = [tokenizer.decode([n], skip_special_tokens=True) for n in range(len(tokenizer))]
    mute = [n for n, text in enumerate(texts) if not says_something(text)]
    with torch.no_grad():
        model.lm_head.weight[mute] = 0
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def says_something(text: str) -> bool:
    return text.isascii() and text.isprintable() and bool(text.strip())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
