"""The kinds of data that a prepared folder may hold, and what a reader must know of each.

A new kind has an entry here, a function that prepares it with its name in ``cli/prepare.py``, and a module that learns
from it. Records whose rows have a form of their own also need it in ``text/records.py``; items that are neither rows of
tokens nor prompts with answers need a datamodule.
"""

from __future__ import annotations

from typing import NamedTuple


class DataKind(NamedTuple):
    """What a reader must know of a kind of data.

    Args:
        datamodule: name of the class that makes batches of it.
        counted: what the manifest counts in a chunk: tokens or records.
        noted: the same count's name in LitData's index.
    """

    datamodule: str
    counted: str
    noted: str

    @property
    def has_records(self) -> bool:
        """Whether there is a length and a text beside the chunks for every item."""
        return self.counted == "records"


KINDS = {
    "text": DataKind("DiffusionDataModule", "tokens", "dim"),
    "chat": DataKind("AnswerDataModule", "records", "chunk_size"),
    "preference": DataKind("AnswerDataModule", "records", "chunk_size"),
}
