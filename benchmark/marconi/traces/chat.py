"""Turns chat messages into the tokens of prompts and answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jinja2

from traces.encoder import Encoder

Message = dict[str, str]


def load_tokenizer(tokenizer: Any) -> Any:
    """A Hugging Face tokenizer: a name or folder is loaded, anything else is taken as one."""
    if not isinstance(tokenizer, str):
        return tokenizer
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer)


def plain_messages(messages: object) -> list[Message]:
    """Role and text of each message of an OpenAI-style list.

    Parts of a content are joined; images and other parts without text are left out. Tool calls
    follow the text as JSON.

    Raises:
        ValueError: not a list of objects with a role.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages are missing, empty or no list")
    return [_plain(message) for message in messages]


def _plain(message: Any) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError("a message is no object with a role")
    text = content_text(message.get("content"))
    if message.get("tool_calls"):
        text += json.dumps(message["tool_calls"], ensure_ascii=False)
    return {"role": message["role"], "content": text}


def content_text(content: Any) -> str:
    """Text of a message's content: a string, a list of parts, or nothing.

    Raises:
        ValueError: anything else.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    raise ValueError("a message's content is neither text nor a list of parts")


def prompt_tokens(encoder: Encoder, messages: Sequence[Message]) -> tuple[int, ...]:
    """Tokens of a prompt that asks for the assistant's next message."""
    return _render(encoder, messages, generation=True)


def answer_tokens(
    encoder: Encoder, messages: Sequence[Message], prompt: Sequence[int], answer: str
) -> tuple[int, ...]:
    """Tokens of the answer to ``messages``, whose prompt is ``prompt``.

    Where the chat template, told of the answer, extends the prompt, they are what it adds (its end
    of turn included), so that the next prompt extends prompt and answer; else the text's tokens.
    """
    whole = _render(
        encoder, [*messages, {"role": "assistant", "content": answer}], generation=False
    )
    if whole[: len(prompt)] == tuple(prompt):
        return whole[len(prompt) :]
    return encoder.encode(answer)


def _render(encoder: Encoder, messages: Sequence[Message], *, generation: bool) -> tuple[int, ...]:
    """By the tokenizer's chat template; without one, a line ``role: text`` a message."""
    tokenizer = encoder.tokenizer
    if getattr(tokenizer, "chat_template", None):
        try:
            text = tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the tokenizer's chat template refuses: {error}") from error
    else:
        text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        text += "assistant:" if generation else ""
    return encoder.encode(text)
