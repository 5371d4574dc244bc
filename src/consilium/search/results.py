"""Results of a search as rows of a table, as JSON, or as a page with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.core.errors import ConsiliumError
from consilium.core.reporter import counted
from consilium.data.batches.rows import Query
from consilium.data.look.thumbnails import thumbnail
from consilium.evaluation.report.page import environment, jpeg_url
from consilium.search.index import Hit, Index

SHOWN_TEXT = 60  # letters of a text in a table
SHOWN_TERMS = 8  # of a text, in a table and on the page
PICTURE = 256  # pixels of the side of a picture


@dataclass(frozen=True)
class Results:
    """What was looked for in an index, and what was found."""

    index: Index
    query: Query
    among: str
    hits: Sequence[Hit]
    filters: dict[str, str]

    @property
    def asked(self) -> str:
        """The text that was looked for, or the path of the image."""
        return self.query.text or str(self.query.image)

    @property
    def heading(self) -> str:
        """The text, or the name of the image file."""
        return f"“{self.query.text}”" if self.query.text else f"Cases like {Path(self.asked).name}"

    def title(self) -> str:
        """A line above the results."""
        return f"{self.asked!r} in {self.index.folder}: {self.sentence()[0].lower()}{self.sentence()[1:-1]}"

    def sentence(self) -> str:
        """What was searched, as a sentence."""
        manifest, kind = self.index.manifest, "image" if self.among == "images" else "text"
        all_of = manifest.texts if kind == "text" else manifest.images
        kept = " and ".join(f"the {name} {value}" for name, value in self.filters.items())
        found = (
            f"{counted(len(self.hits), kind)} of {kept}" if kept else f"{len(self.hits):,} of {counted(all_of, kind)}"
        )
        by = f"{'their terms, of ' if self.among == 'terms' else ''}the expert {manifest.bundle['name']}"
        return f"The nearest {found}, by {by}."

    def facts(self) -> dict[str, str]:
        """What the page says of where the results are from."""
        manifest = self.index.manifest
        search = "exact" if manifest.faiss is None or self.among != "images" or self.filters else manifest.faiss
        named = "; ".join(f"{own.source}: {own.name or 'unknown'}" for own in self.index.licenses)
        return {
            "Index": str(self.index.folder),
            "Made of": ", ".join(manifest.places),
            "Index of": manifest.created,
            "Cases": f"{manifest.cases:,}",
            "Bundle": f"{manifest.bundle['name']} ({manifest.bundle['checksum']})",
            **({"Licences of its starting weights": named} if named else {}),
            "Search": search,
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row of a table for each result; a column that would be empty is left out."""
        rows = [
            {
                "rank": hit.rank,
                "similarity": hit.similarity,
                "case": hit.id,
                "source": hit.source,
                "label": "; ".join(hit.labels),
                "cases": "" if self.among == "images" else hit.cases,
                "terms": ", ".join(list(hit.terms)[:SHOWN_TERMS]),
                "text": _short(hit.text or " / ".join(hit.texts)),
            }
            for hit in self.hits
        ]
        filled = [name for name in (rows[0] if rows else ()) if any(row[name] != "" for row in rows)]
        return [{name: row[name] for name in filled} for row in rows]

    def tree(self) -> dict[str, Any]:
        """All of it, to be written as JSON."""
        asked = {"text": self.query.text} if self.query.text else {"image": str(self.query.image)}
        about = {"index": str(self.index.folder), "bundle": dict(self.index.manifest.bundle), "among": self.among}
        return {"query": asked, **about, "filters": self.filters, "hits": [hit.tree() for hit in self.hits]}

    def page(self, *, images: bool) -> str:
        """One HTML file that needs no other; without ``images`` it has no picture."""
        pictures = [picture(self.index, hit) if images else None for hit in self.hits]
        query = None
        if images and self.query.image is not None:
            query = _data_url(thumbnail(str(self.query.image), size=PICTURE, window=self.index.window))
        template = environment(escape_html=True, package="consilium.search").get_template("search.html.j2")
        return template.render(results=self, pictures=pictures, query=query, images=images, shown_terms=SHOWN_TERMS)


def picture(index: Index, hit: Hit) -> str | None:
    """The first view of a result as a data URL; None where it has none, or it cannot be read any more."""
    try:
        views = index.views(hit)
    except ConsiliumError:  # the store is gone
        return None
    return _data_url(thumbnail(views[0], size=PICTURE, window=index.window)) if views else None


def _data_url(jpeg: bytes | None) -> str | None:
    return None if jpeg is None else jpeg_url(jpeg)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_TEXT else text[: SHOWN_TEXT - 1] + "…"
