"""Document numbers of packed rows, and what a padding row counts for."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_llada.data.batch import collate, document_ids

EOS = 9


def test_a_document_ends_with_its_eos() -> None:
    tokens = torch.tensor([[1, 2, EOS, 3, EOS, EOS, 4], [EOS, 1, 1, 1, 1, 1, 1]])
    expected = [[0, 0, 0, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]]
    assert document_ids(tokens, EOS).tolist() == expected


@given(st.lists(st.lists(st.integers(0, 8), max_size=5), min_size=1, max_size=8))
def test_document_ids_number_the_documents_of_any_packing(documents: list[list[int]]) -> None:
    tokens = [t for d in documents for t in [*d, EOS]]
    expected = [n for n, d in enumerate(documents) for _ in range(len(d) + 1)]
    assert document_ids(torch.tensor([tokens]), EOS).tolist() == [expected]


def test_collate_widens_stored_integers_and_masks_padding_rows() -> None:
    stored = torch.tensor([[1, EOS, 65535 - 1], [1, 2, 3]], dtype=torch.int32).to(torch.uint16)
    batch = collate(torch.tensor([7, 8]), stored, EOS, real=torch.tensor([True, False]))
    assert batch.tokens.dtype == batch.documents.dtype == batch.keys.dtype == torch.int64
    assert batch.tokens.tolist() == [[1, EOS, 65534], [1, 2, 3]]
    assert batch.maskable.dtype == torch.bool
    assert batch.maskable.tolist() == [[True] * 3, [False] * 3]
    assert collate(batch.keys, stored, EOS).maskable.all()
