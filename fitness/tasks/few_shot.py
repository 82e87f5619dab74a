"""Few-shot examples that give nothing away: none is held out, and none is the asked item itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lm_eval.api.samplers import ContextSampler
from lm_eval.defaults import DEFAULT_OTHER_SEED

from fitness.tasks.documents import Document

KeyOf = Callable[[Document], str | None]


class CleanSampler(ContextSampler):  # type: ignore[misc]  # lm-eval has no types
    """Examples as lm-eval draws them, with other ones in place of those that would give an answer away.

    An example is unfit if its question is a held-out item's or the asked item's. Draws without an unfit example are
    exactly lm-eval's; replacements are drawn by a generator of their own, seeded by the asked item.

    Attributes
    ----------
    held_out
        Keys of the questions that no prompt may show.
    asked
        Key of the item that the next examples are for.
    shown
        Examples that were given, by their keys; those without a key under the empty text.
    """

    def __init__(self, inner: ContextSampler, key_of: KeyOf) -> None:
        super().__init__(inner.df)
        self._inner = inner
        self._key_of = key_of
        self._keys: dict[int, tuple[Document, str | None]] = {}
        self.held_out: frozenset[str] = frozenset()
        self.asked: str | None = None
        self.shown: dict[str, Document] = {}

    def sample(self, n: int, eval_doc: Document | None = None, df: Any = None, **kwargs: Any) -> Sequence[Document]:
        """Return `n` examples for the asked item.

        Raises
        ------
        ValueError
            If fewer than `n` documents are fit to be shown.
        """
        if n == 0:
            return []
        try:
            drawn = list(self._inner.sample(n, eval_doc=eval_doc, df=df, **kwargs))
        except (ValueError, AssertionError):  # too few documents for lm-eval, which draws one more than it needs
            drawn = list(self._documents())[:n]
        fit = all(map(self._fits, drawn)) and len(drawn) == n
        given = drawn if fit else self._replaced(drawn, n)
        for document in given:
            self.shown.setdefault(self._keyed(document) or "", document)
        return given

    def set_rnd(self, rnd: int | None) -> ContextSampler:
        """Seed the generator of lm-eval's draws."""
        self._inner.set_rnd(rnd)
        return self

    def replace_df(self, df: Sequence[Document]) -> ContextSampler:
        """Draw from other documents."""
        self._inner.replace_df(df)
        return self

    def _replaced(self, drawn: Sequence[Document], n: int) -> list[Document]:
        """Return the fit ones of `drawn` in their places, and random fit ones in place of the others."""
        others = self._shuffled(drawn)
        result: list[Document] = []
        for given in [*drawn, *[None] * (n - len(drawn))]:
            document = given if given is not None and self._fits(given) else next(others, None)
            if document is None:
                raise ValueError(
                    f"num_fewshot is {n}, and only {sum(map(self._fits, self._documents()))} documents are neither "
                    "held out nor the asked item"
                )
            result.append(document)
        return result

    def _shuffled(self, drawn: Iterable[Document]) -> Any:
        """Yield fit documents that were not drawn, in an order that depends on the asked item."""
        taken = list(drawn)
        documents = list(self._documents())
        random.Random(f"{DEFAULT_OTHER_SEED}/{self.asked}").shuffle(documents)
        for document in documents:
            if self._fits(document) and document not in taken:
                yield document

    def _documents(self) -> Sequence[Document]:
        documents: Sequence[Document] = self._inner.fewshot_docs()
        return documents

    def _keyed(self, document: Document) -> str | None:
        known = self._keys.get(id(document))
        if known is None:
            known = self._keys[id(document)] = (document, self._key_of(document))
        return known[1]

    def _fits(self, document: Document) -> bool:
        key = self._keyed(document)
        return key is None or (key != self.asked and key not in self.held_out)
