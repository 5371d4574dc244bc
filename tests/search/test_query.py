"""Whatever is typed as a query is an image or a text, or a ConfigError that says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.errors import ConfigError
from consilium.search.query import query_of


@given(st.text())
def test_any_text_is_a_text(text: str) -> None:
    asked = query_of(text, kind="text")
    assert (asked.text, asked.image) == (text, None)


@given(st.text(st.characters(blacklist_characters="/.~:"), min_size=1))
def test_words_are_a_text_unless_a_file_has_their_name(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.getbasetemp() / "..")
        assert query_of(f"{text} ", kind=None).text == f"{text} "


@pytest.mark.parametrize("text", ["word " * 2000, "a\0b", "CT/MRI of the head", "3.5 mm nodule", "~", "10:30", "no. 5"])
def test_texts_that_look_odd(text: str) -> None:
    if text == "~":
        with pytest.raises(ConfigError, match="is a folder"):
            query_of(text, kind=None)
    else:
        assert query_of(text, kind=None).text == text


def test_images_are_files(tmp_path: Path) -> None:
    (tmp_path / "a.PNG").write_bytes(b"")
    assert query_of(str(tmp_path / "a.PNG"), kind=None).image == str(tmp_path / "a.PNG")
    assert query_of("gs://bucket/a.png", kind=None).image == "gs://bucket/a.png"
    assert query_of("missing.png", kind="image").image == "missing.png"
    for missing in ("b.dcm", "b.nii.gz", "b.jpeg"):
        with pytest.raises(ConfigError, match=f"there is no image {missing}"):
            query_of(missing, kind=None)
