"""A search by terms gives the products of whole vectors of weights, and says which terms made them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consilium import Index, Query
from consilium.core.errors import ConfigError, SearchError
from consilium.data.store.store import Store
from consilium.predictor import Predictor
from consilium.search import building
from consilium.search.finding import find
from consilium.search.terms import WEIGHT, TermVectors
from tests.data.samples import write_jsonl
from tests.search.test_index import TEXT, build
from tests.tasks.test_align_contract import train_pairs
from tests.tasks.test_align_splade import own
from tests.tiny import Recorder

_VECTORS = st.lists(st.dictionaries(st.integers(0, 20), st.floats(0.125, 8.0, width=32), max_size=6), max_size=6)


def vector(weights: dict[int, float]) -> np.ndarray:
    return np.array(list(weights.items()), dtype=WEIGHT)


def dense(weights: dict[int, float]) -> np.ndarray:
    full_V = np.zeros(21)
    full_V[list(weights)] = list(weights.values())
    return full_V


@given(_VECTORS, st.dictionaries(st.integers(0, 20), st.floats(0.125, 8.0, width=32), max_size=6))
def test_products_are_those_of_dense_vectors(texts: Sequence[dict[int, float]], query: dict[int, float]) -> None:
    vectors = TermVectors.of([vector(text) for text in texts])
    expected_T = [dense(text) @ dense(query) for text in texts]
    np.testing.assert_allclose(vectors.products(vector(query)), expected_T, rtol=1e-6)
    assert [own.tolist() for own in vectors.each()] == [vector(text).tolist() for text in texts]
    for number, text in enumerate(texts):
        matched = vectors.matched(vector(query), number)
        assert {term for term, _ in matched} == set(text) & set(query)
        assert [added for _, added in matched] == sorted((added for _, added in matched), reverse=True)
        assert sum(added for _, added in matched) == pytest.approx(expected_T[number])


@pytest.fixture(scope="module")
def weighing(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """An expert of captioned squares whose texts are weights of terms; no test changes it."""
    folder = tmp_path_factory.mktemp("weighing")
    return Predictor.load(train_pairs(folder, *own(folder), "trainer.max_steps=4").folder, device="cpu", batch_size=8)


def term_weights(model: Predictor, texts: Sequence[str]) -> np.ndarray:
    """The dense vectors [B, V] of texts, of the terms that have a name."""
    padded = model.task.tokenizer.pad(model.task.tokenizer.encode(texts))
    with torch.no_grad():
        weights_BV = model.task.text(padded.tokens_BT, padded.attention_BT).numpy()
    return weights_BV[:, [name != "" for name in model.task.terms()]]


def test_a_search_ranks_texts_by_the_product_of_their_terms(weighing: Predictor, store: Path, tmp_path: Path) -> None:
    index = Index.build(weighing, [store], out=tmp_path / "index", quiet=True)
    texts = list(dict.fromkeys(Store.open(store).table.texts))
    expected = dict(zip(texts, (term_weights(weighing, texts) @ term_weights(weighing, [TEXT]).T)[:, 0], strict=True))
    hits = index.search(text=TEXT, among="terms", k=100)
    assert [hit.text for hit in hits] == sorted(texts, key=lambda text: -expected[text])
    (asked,) = weighing.predict(Query(text=TEXT))
    for hit in hits:
        assert hit.text is not None
        assert hit.cases == 2
        assert hit.similarity == pytest.approx(expected[hit.text], rel=1e-4)
        assert hit.similarity == pytest.approx(sum(hit.terms.values()), rel=1e-6)
        assert hit.terms.keys() <= asked["text_terms"].keys()
    assert len(index.search(text=TEXT, among="terms", k=3, source="pairs")) == 3
    assert not index.search(text=TEXT, among="texts", k=1)[0].terms


def test_texts_that_share_no_term_are_not_found(weighing: Predictor, store: Path, tmp_path: Path) -> None:
    index = Index.build(weighing, [store], out=tmp_path / "index", quiet=True)
    index._content = replace(index._content, terms=TermVectors.of([vector({}) for _ in index._content.texts]))
    results = find(index, Query(text=TEXT), k=5, among="terms")
    assert list(results.hits) == []
    assert results.rows() == results.tree()["hits"] == []
    assert "No text has a term of what was asked" in results.page(images=False)


def test_a_page_and_json_name_the_terms(weighing: Predictor, store: Path, tmp_path: Path) -> None:
    index = Index.build(weighing, [store], out=tmp_path / "index", quiet=True)
    results = find(index, Query(text=TEXT), k=2, among="terms")
    assert "by their terms, of the expert pairs" in results.title()
    first = list(results.hits[0].terms)
    assert results.rows()[0]["terms"] == ", ".join(first[:8])
    assert list(json.loads(json.dumps(results.tree()))["hits"][0]["terms"]) == first
    assert "the product of the weights of the terms" in results.page(images=False)
    assert "terms" not in find(index, Query(text=TEXT), k=2, among="texts").tree()["hits"][0]


def test_a_killed_build_goes_on_and_an_update_reads_what_is_new(
    weighing: Predictor, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def table(count: int) -> Path:
        rows = [{"image": f"{number:02d}.png", "text": f"a red square, number {number}"} for number in range(count)]
        return write_jsonl(squares / "pairs.jsonl", rows)

    class Killed(Recorder):
        def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
            if name == "index" and done == 13:
                raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(building, "PART", 4)
    with pytest.raises(KeyboardInterrupt):
        build(weighing, table(8), out=tmp_path / "index", reporter=Killed())
    done = build(weighing, table(8), out=tmp_path / "index")
    assert (done.embedded_images, done.embedded_texts) == (8, 8)
    assert "it is up to date" in str(build(weighing, out=tmp_path / "index"))
    grown = build(weighing, table(10), out=tmp_path / "index")
    assert (grown.embedded_images, grown.embedded_texts) == (2, 2)
    build(weighing, squares / "pairs.jsonl", out=tmp_path / "fresh")
    updated, fresh = (
        {hit.text: hit.similarity for hit in Index.load(tmp_path / name, weighing).search(text=TEXT, among="terms")}
        for name in ("index", "fresh")
    )
    assert len(fresh) == 10
    assert updated == pytest.approx(fresh, rel=1e-5)


def test_what_cannot_be_asked(
    weighing: Predictor, model: Predictor, store: Path, squares: Path, tmp_path: Path
) -> None:
    index = Index.build(weighing, [store], out=tmp_path / "index", quiet=True)
    with pytest.raises(ConfigError, match="a search by terms is for a text"):
        index.search(image=squares / "03.png", among="terms")
    plain = Index.build(model, [store], out=tmp_path / "plain", quiet=True)
    with pytest.raises(SearchError, match=r"weighs no terms.* task.text.pooling: splade"):
        plain.search(text=TEXT, among="terms")
    assert not (tmp_path / "plain" / "terms.npz").exists()
    (tmp_path / "index" / "terms.npz").write_bytes(b"PK")
    with pytest.raises(SearchError, match=r"the checksum of terms\.npz differs"):
        Index.load(tmp_path / "index", weighing)


def test_an_index_without_terms_is_brought_up_to_date(weighing: Predictor, store: Path, tmp_path: Path) -> None:
    """As a version wrote it that knew no terms."""
    build(weighing, store, out=tmp_path / "index")
    manifest = json.loads((tmp_path / "index" / "index.json").read_text(encoding="utf-8"))
    del manifest["files"]["terms.npz"]
    (tmp_path / "index" / "index.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(SearchError, match="holds no terms; run `consilium index` again"):
        Index.load(tmp_path / "index", weighing).search(text=TEXT, among="terms")
    done = build(weighing, out=tmp_path / "index")
    assert (done.embedded_images, done.embedded_texts) == (0, 24)
    assert Index.load(tmp_path / "index", weighing).search(text=TEXT, among="terms")
