"""Questions that are nearly the same: equal up to case, white space and punctuation, or sharing most of their phrases.

Two questions overlap if they are the same words, or if at least half of the phrases of `PHRASE` words in one of them
are in the other. Phrases that more than `COMMON` questions share belong to a template and do not count.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fitness.results import TaskError

PHRASE = 8
"""Words of a phrase; a character of Chinese, Japanese or Korean is a word."""
SHARE = 0.5
COMMON = 10
FEWEST = 4
"""A question needs so many phrases of its own to be compared by them; a shorter one is compared as a whole."""
MOST_PHRASES = 300_000
"""Of more phrases a sample is compared, the same for all questions."""

_EAST_ASIAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_EAST_ASIAN}]|[^\W{_EAST_ASIAN}]+|[^\w\s]")
_PUNCTUATION = frozenset(".,;:!?'\"`’‘“”…、。「」・-–—")  # operators and brackets carry meaning


def words_of(text: str) -> list[str]:
    """Return the words, numbers and symbols of a text, without case and without the punctuation of sentences."""
    found: list[str] = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [
        word
        for at, word in enumerate(found)
        if word not in _PUNCTUATION or (word == "-" and "".join(found[at + 1 : at + 2]).isdigit())  # a sign, or minus
    ]


def plain_text(text: str) -> str:
    """Return text that is equal for two texts of the same words; the text itself where it has no word."""
    return " ".join(words_of(text)) or text


def check_apart(place: str, texts: Mapping[str, str], questions: Mapping[str, str]) -> None:
    """Check that no text holds a question that is held out, white space apart.

    Parameters
    ----------
    place
        The key of the search file that names the texts.
    texts
        Contents by the name of the file.
    questions
        Item ids and questions.

    Raises
    ------
    TaskError
        If one does.
    """
    plain = {path: " ".join(text.split()) for path, text in texts.items()}
    for item, question in questions.items():
        words = " ".join(question.split())
        for path, text in plain.items():
            if words and words in text:
                raise TaskError(
                    f"{place}: {path} contains the held-out item {item} ({words[:40]!r}), so its score "
                    "would say nothing; remove it from the text"
                )


@dataclass(frozen=True)
class Question:
    """A question, with a key that equal questions share, and a name for messages."""

    key: str
    text: str
    name: str = ""


class Overlaps:
    """Groups of questions that are compared with each other.

    Parameters
    ----------
    groups
        The groups, by name.
    """

    def __init__(self, groups: Mapping[str, Sequence[Question]]) -> None:
        self._groups = groups
        words = {name: [words_of(question.text) for question in questions] for name, questions in groups.items()}
        step = sum(len(each) for texts in words.values() for each in texts) // MOST_PHRASES + 1
        self._phrases = {name: [_phrases(each, step) for each in texts] for name, texts in words.items()}
        self._plain = {
            name: [" ".join(own) or question.text for own, question in zip(words[name], questions, strict=True)]
            for name, questions in groups.items()
        }
        spread: Counter[int] = Counter()
        for name, questions in groups.items():  # a question counts once in each group
            once = {question.key: phrases for question, phrases in zip(questions, self._phrases[name], strict=True)}
            for phrases in once.values():
                spread.update(phrases)
        self._common = {phrase for phrase, count in spread.items() if count > COMMON}

    def between(self, name: str, other: str) -> list[int]:
        """Return the positions of a group's questions that overlap with one of another group that is not equal."""
        questions, others = self._groups[name], self._groups[other]
        same: dict[str, set[str]] = {}
        having: dict[int, set[str]] = {}
        for question, plain, phrases in zip(others, self._plain[other], self._phrases[other], strict=True):
            same.setdefault(plain, set()).add(question.key)
            for phrase in phrases - self._common:
                having.setdefault(phrase, set()).add(question.key)
        found = []
        for at, (question, plain) in enumerate(zip(questions, self._plain[name], strict=True)):
            own = self._phrases[name][at] - self._common
            shared = Counter(key for phrase in own for key in having.get(phrase, ()) if key != question.key)
            near = len(own) >= FEWEST and max(shared.values(), default=0) >= SHARE * len(own)
            if near or same.get(plain, set()) - {question.key}:
                found.append(at)
        return found


def _phrases(words: Sequence[str], step: int) -> set[int]:
    """Return phrases of a text as hashes; of several, those whose first word makes it one in `step`."""
    starts = range(len(words) - PHRASE + 1)
    return {hash(tuple(words[at : at + PHRASE])) for at in starts if step == 1 or hash(words[at]) % step == 0}
