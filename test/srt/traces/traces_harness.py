"""Tokenizers and requests made by code, for the tests of traces."""

from __future__ import annotations

import itertools
from pathlib import Path

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from traces import Request
from traces.request import HINTS
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_byte_tokenizer(folder: Path, chat_template: str | None = None) -> str:
    """A tokenizer with one token a byte, saved as a model's folder would have it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    vocab = {token: index for index, token in enumerate(marks + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.add_special_tokens({"additional_special_tokens": marks[1:]})
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return str(folder)


@st.composite
def hashed_traces(draw: st.DrawFn, block: int = 64) -> list[Request]:
    """Requests of block ids with whole milliseconds, in arrival order."""
    clock, found = 0, []
    fresh = itertools.count(1)
    for _ in range(draw(st.integers(0, 8))):
        clock += draw(st.integers(0, 10**6))
        length = draw(st.integers(1, block * 6))
        output = draw(st.integers(0, block * 4))
        full = length // block
        room = (length + output) // block - full
        found.append(
            Request(
                timestamp_ms=float(clock),
                session=draw(st.none() | st.sampled_from(["a", "b", "Sitzung ß"])),
                input_length=length,
                output_length=output,
                prompt_ids=tuple(next(fresh) for _ in range(full)),
                output_ids=tuple(next(fresh) for _ in range(room)),
                hint=draw(st.none() | st.sampled_from(HINTS)),
            )
        )
    return found
