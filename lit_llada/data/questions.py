"""Which questions do prepared folders ask? Those of `prepare chat`, each with its one right answer."""

from __future__ import annotations

from collections.abc import Sequence

from lit_llada.data.chat import ChatTemplate
from lit_llada.data.folder import DataFolder, is_remote, read_records
from lit_llada.errors import UserError
from lit_llada.evaluation.exact_match import Question, read_questions


def questions_of(folders: Sequence[DataFolder], split: str) -> tuple[list[Question], ChatTemplate]:
    """The questions of a split of one or more folders of one vocabulary, and the template that they are written with.

    Raises:
        UserError: a folder of another kind, a remote one, or one whose split is empty.
    """
    template = None
    found: list[Question] = []
    for folder in folders:
        if folder.kind != "chat":
            raise UserError(
                f"{folder.location} holds {folder.kind}, not questions with one right answer: give a folder made by"
                " `lit-llada prepare chat`"
            )
        if is_remote(folder.location):
            raise UserError(f"{folder.location} is remote, and questions are read as text: give a local copy")
        template = ChatTemplate(**folder.manifest["chat_template"])
        found += read_questions(read_records(folder.location, split), template, folder.tokenizer)
    if template is None or not found:
        raise UserError(f"the {split} split of {', '.join(f.location for f in folders)} has no question")
    return found, template
