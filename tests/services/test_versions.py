"""Version names."""

from __future__ import annotations

import pytest

from penstock.services.versions import FIRST, Version


def test_a_version_reads_back_from_its_text():
    assert Version.parse(str(Version(2, 17))) == Version(2, 17)
    assert str(FIRST) == "0.0"
    assert FIRST.next() == Version(0, 1)


@pytest.mark.parametrize("text", ["", "7", "1.", "a.b", "1.2.3", "-1.2"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"LINEAGE\.STEP"):
        Version.parse(text)
