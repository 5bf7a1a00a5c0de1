"""Divides documents and prompts into training, validation and test, by a hash of their text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from lit_llada.errors import UserError
from lit_llada.files import text_hash

Split = Literal["train", "val", "test"]
HASHES = 1 << 64  # numbers that a text's hash may be


class Fractions(NamedTuple):
    """How much of the texts is held out.

    Args:
        val: share for validation.
        test: share for the test; without one there is no such split.
    """

    val: float
    test: float = 0.0

    @property
    def splits(self) -> tuple[Split, ...]:
        """The names of the splits, in the order of the manifest."""
        return ("train", "val", "test") if self.test else ("train", "val")

    @property
    def options(self) -> dict[str, Any]:
        """What the manifest says of them: nothing of a test where there is none, as before there was one."""
        return {"val_fraction": self.val, **({"test_fraction": self.test} if self.test else {})}

    def check(self) -> None:
        """Refuse what are no shares.

        Raises:
            UserError: names the option.
        """
        if not 0 < self.val < 1:
            raise UserError(f"val_fraction is {self.val}; it must lie between 0 and 1")
        if not 0 <= self.test < 1 - self.val:
            raise UserError(
                f"test_fraction is {self.test}; it must be 0 or more, and less than 1 together with val_fraction"
                f" ({self.val})"
            )


class Bounds(NamedTuple):
    """The hashes at which splits end. Test comes first, then validation: what is held out is never trained on later.

    Args:
        test: texts with a smaller hash are the test split.
        val: texts with a smaller hash, but for those of the test, are the validation split.
    """

    test: int
    val: int

    @classmethod
    def of(cls, fractions: Fractions) -> Bounds:
        """The bounds that hold out these shares of very many texts."""
        return cls(int(fractions.test * HASHES), int((fractions.test + fractions.val) * HASHES))

    def split_of(self, text: str) -> Split:
        """The split that a text belongs to."""
        return self.split_of_hash(text_hash(text))

    def split_of_hash(self, number: int) -> Split:
        """The split of the texts with this hash."""
        if number < self.test:
            return "test"
        return "val" if number < self.val else "train"


def find_bounds(texts: Iterable[str], fractions: Fractions, what: str = "document") -> Bounds | None:
    """Bounds that leave no split empty, or None if there is a single text.

    Stops reading as soon as every split has a text, which in a large corpus is soon.

    Args:
        texts: texts to divide.
        fractions: shares to hold out.
        what: name of a text in an error message.

    Raises:
        UserError: there are fewer texts than splits, and not a single one.
    """
    bounds, hashes, filled = Bounds.of(fractions), set[int](), set[Split]()
    for text in texts:
        number = text_hash(text)
        hashes.add(number)
        filled.add(bounds.split_of_hash(number))
        if len(filled) == len(fractions.splits):
            return bounds
    if not hashes:
        raise UserError(f"the inputs hold no {what}")
    if len(hashes) == 1:
        return None
    if len(hashes) < len(fractions.splits):
        raise UserError(
            f"the inputs hold {len(hashes)} different {what}s, too few for training, validation and test; give more, or"
            " leave --test_fraction out"
        )
    return _moved(bounds, sorted(hashes), fractions)


def _moved(bounds: Bounds, hashes: list[int], fractions: Fractions) -> Bounds:
    """The bounds moved just so far that every split has one of these few hashes."""
    test = 0
    if fractions.test:
        test = _between(1, sum(number < bounds.test for number in hashes), len(hashes) - 2)
    held_out = _between(test + 1, sum(number < bounds.val for number in hashes), len(hashes) - 1)
    return Bounds(hashes[test] if test else 0, hashes[held_out])


def _between(least: int, wanted: int, most: int) -> int:
    return max(least, min(wanted, most))
