"""Text to tokens, by the rules of lm-eval's `HFLM`, so that scores agree with lm-eval item for item."""

from __future__ import annotations

from typing import Any

import jinja2

from fitness.results import TaskError
from fitness.scoring.time_limit import TooSlow, within
from fitness.tasks.templates import MOST_SECONDS


class Encoder:
    """Tokenises prompts; the tokenizer is never changed.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._prefix: int | None = eos if bos is None else bos
        self._prefix_text = None if self._prefix is None else tokenizer.decode(self._prefix)
        self._contexts: dict[str, list[int]] = {}  # the choices of a question share their context

    def pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens of a context and of its continuation; white space between them belongs to the continuation.

        An empty context becomes the beginning-of-sequence token (or the end-of-sequence one).
        """
        if context:
            kept = context.rstrip()
            whole = self._encode(context + continuation)
            if kept not in self._contexts:
                self._contexts[kept] = self._encode(kept)
            start = len(self._contexts[kept])
            # not whole[:start]: a token may span both texts; HFLM does the same
            context_tokens, tokens = self._contexts[kept], whole[start:]
        else:
            tokens = self.tokenizer.encode(continuation, add_special_tokens=False)
            if self._prefix is None:
                raise TaskError(
                    "a prompt is empty, and the tokenizer has neither a bos nor an eos token to start from: "
                    "set one in the tokenizer, or give the task a doc_to_text"
                )
            context_tokens = [self._prefix]
            if tokens and tokens[0] == self._prefix:
                context_tokens, tokens = tokens[:1], tokens[1:]
        if not tokens or not context_tokens:
            raise TaskError(
                f"the tokenizer gives {continuation!r} after {context[-40:]!r} no token of its own: "
                "set the task's target_delimiter so that both sides have tokens"
            )
        return tuple(context_tokens), tuple(tokens)

    def prompt(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text to continue, with special tokens unless it starts with the bos token."""
        bos = self.tokenizer.bos_token
        has_bos = bos is not None and text.startswith(bos)
        tokens = tuple(self.tokenizer(text, **({"add_special_tokens": False} if has_bos else {}))["input_ids"])
        if not tokens:
            raise TaskError(f"the prompt {text[:40]!r} has no tokens to continue: give the task a doc_to_text")
        return tokens

    def _encode(self, text: str) -> list[int]:
        has_prefix = self._prefix_text is not None and text.startswith(self._prefix_text)
        tokens: list[int] = self.tokenizer.encode(text, **({"add_special_tokens": False} if has_prefix else {}))
        return tokens

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as one text, without its system message if the template does not support one.

        The template is the model's, and a model may be a stranger's: transformers renders it in a sandbox that bounds
        no loops, so its time is bounded here.

        Raises
        ------
        TaskError
            If it takes longer than a template may.
        """
        settings = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            with within(MOST_SECONDS):
                try:
                    return str(self.tokenizer.apply_chat_template(messages, **settings))
                except jinja2.exceptions.TemplateError:
                    others = [message for message in messages if message["role"] != "system"]
                    return str(self.tokenizer.apply_chat_template(others, **settings))
        except TooSlow:
            raise TaskError(
                f"the model's chat template takes longer than {MOST_SECONDS:g} s for one prompt: repair it in the "
                "model's folder, or write fitness.apply_chat_template: false"
            ) from None
