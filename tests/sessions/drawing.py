"""An engine and a tokenizer that are a hash each, and what an undisturbed session would say with them."""

from __future__ import annotations

from meshnode import ids
from tests.sessions import cases

EOS = cases.CARD.eos[0]
ANSWER_TOKENS_MAX = 12


def draw(context: list[int]) -> int:
    """The engine: the next token is a hash of all before it."""
    found = ids.digest(b"".join(token.to_bytes(4, "big") for token in context))
    return EOS if found[0] < 8 else 10 + found[1] % 200


def encoded(text: str) -> tuple[int, ...]:
    return tuple(300 + ord(letter) for letter in text)


def question(number: int) -> str:
    return "question " + "abc"[number % 3]


def expected(number: int) -> list[int]:
    """The answer to the turn of this number, after all before it."""
    context: list[int] = []
    answer: list[int] = []
    for place in range(1, number + 1):
        context += encoded(question(place))
        answer = []
        while len(answer) < ANSWER_TOKENS_MAX and EOS not in answer:
            answer.append(draw(context))
            context.append(answer[-1])
    return answer
