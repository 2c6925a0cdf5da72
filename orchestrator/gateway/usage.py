"""What requests used: tokens read from the end of an answer, summed by key and service."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.frozen import frozen

TAIL_BYTES = 4096
"""How much of an answer's end is looked at: usage stands last, or before a few short fields."""

_PROMPT = re.compile(rb'"(?:prompt_tokens|input_tokens)"\s*:\s*(\d{1,12})')
_OUTPUT = re.compile(rb'"(?:completion_tokens|output_tokens)"\s*:\s*(\d{1,12})')


@frozen
class Tokens:
    """The tokens of one answer."""

    prompt: int
    output: int


def tokens_of(tail: bytes) -> Tokens | None:
    """Return what the end of an answer says was used, None where it says nothing.

    The names are those of OpenAI's completions and of its responses and Anthropic's messages.
    Where they come more than once, as in a stream that tells it in every chunk, the last counts.

    >>> tokens_of(b'data: {"usage": {"prompt_tokens": 9, "completion_tokens": 40}}')
    Tokens(prompt=9, output=40)
    """
    at = tail.rfind(b'"usage"')
    if at < 0:
        return None
    prompt, output = _PROMPT.search(tail, at), _OUTPUT.search(tail, at)
    if prompt is None and output is None:
        return None
    return Tokens(int(prompt[1]) if prompt else 0, int(output[1]) if output else 0)


@dataclass(slots=True)
class Account:
    """Sums of one key with one service; ``untold`` answers that came did not say what they used."""

    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    untold: int = 0

    def add(self, status: int, tokens: Tokens | None) -> None:
        """Count one request that was passed on."""
        self.requests += 1
        self.failed += status >= 400
        if tokens is not None:
            self.prompt_tokens += tokens.prompt
            self.output_tokens += tokens.output
        elif status < 400:  # what was refused used nothing
            self.untold += 1
