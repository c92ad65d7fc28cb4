"""Notes: text with a level and a code."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from bnprune.notes import Note

NOTE = Note("macs.data_dependent", "warning", "MACs depend on data")


def test_a_note_is_its_text() -> None:
    assert NOTE == "MACs depend on data"
    assert "depend" in NOTE
    assert json.dumps([NOTE]) == '["MACs depend on data"]'
    assert type(str(NOTE)) is str


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda note: pickle.loads(pickle.dumps(note))])
def test_a_copy_keeps_level_and_code(copied) -> None:
    again = copied(NOTE)
    assert (again, again.code, again.level) == (NOTE, "macs.data_dependent", "warning")


def test_a_note_is_frozen() -> None:
    with pytest.raises(AttributeError, match="frozen"):
        NOTE.level = "note"
