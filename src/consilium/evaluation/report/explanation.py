"""Why a council answered a case as it did: one HTML page and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from consilium.core.answers import DEFAULT, GENERALIST, Calibration
from consilium.core.files import write_json, write_text
from consilium.core.labels import LabelTree
from consilium.core.licenses import License, license_warnings
from consilium.core.reporter import counted
from consilium.evaluation.labels.saliency import OcclusionMap
from consilium.evaluation.report import wording
from consilium.evaluation.report.page import drawn, environment

PAGE, FIGURES = "explanation.html", "explanation.json"

_BARS = 8  # labels whose probabilities are drawn
_SIDE = 420  # pixels of the longer side of a map
_PLAIN = ("router", DEFAULT, GENERALIST)  # members that sit at no node


@dataclass(frozen=True)
class Level:
    """The likeliest node at a level of a label tree, the second beside it, and whether it was answered.

    ``threshold`` is the least probability of an answer: 0 where any is enough, None where none is. ``limit`` is the
    largest distance of an answer; None: distance does not matter.
    """

    label: str
    probability: float
    second: str | None
    second_probability: float | None
    threshold: float | None
    distance: float | None
    limit: float | None
    answered: bool

    @property
    def given(self) -> str:
        """``ct, with a probability of 41.2 %; second is mri, with 30.0 %``."""
        return f"{self.label}, with a probability of {percent(self.probability)}{self._beside}"

    @property
    def withheld(self) -> str:
        """``ct, but its probability of 41.2 % is below the threshold of 60.0 %; second is mri, with 30.0 %``."""
        return f"{self.label}, but {self.lacks}{self._beside}"

    @property
    def _beside(self) -> str:
        return "" if self.second is None else f"; second is {self.second}, with {percent(self.second_probability)}"

    @property
    def lacks(self) -> str:
        """What was missing for an answer; '' where it was nothing, or sureness of the level above."""
        if self.threshold is None:
            return "validation found no probability from which on answers at this level are right often enough"
        if 0 < self.threshold >= self.probability:  # equal where the record rounds
            own, least = _apart(self.probability, self.threshold)
            return f"its probability of {own} is below the threshold of {least}"
        if self.limit is not None and (self.distance is None or self.distance > self.limit):
            far = "no training case has this label" if self.distance is None else f"its distance is {self.distance:.4g}"
            return f"{far}, and answers end at a distance of {self.limit:.4g} from the training cases"
        return ""

    @property
    def verdict(self) -> str:
        """Whether it was answered, and why, for a table."""
        if not self.answered:
            return f"not answered: {self.lacks or 'the level above is not sure'}"
        if not self.threshold:
            return "answered: there is no threshold, so any probability is enough"
        return f"answered: {' is at least the threshold of '.join(_apart(self.probability, self.threshold))}"


def levels_of(record: Mapping[str, Any], labels: LabelTree, calibration: Calibration) -> list[Level]:
    """The levels of the likeliest path in a record with one label a case."""
    probabilities, label = record["probabilities"], record["label"]
    depth = len(labels.path(labels.index(label))) if label in labels.names else 0
    found = []
    for number, step in enumerate(record["path"]):
        node = labels.index(step["label"])
        siblings = next(group.ids for group in labels.siblings if node in group.ids)
        beside = [labels.names[other] for other in siblings if other != node]
        second = max(beside, key=lambda name: probabilities[name], default=None)
        own = Level(
            label=step["label"],
            probability=step["probability"],
            second=second,
            second_probability=None if second is None else probabilities[second],
            threshold=calibration.thresholds[number] if number < len(calibration.thresholds) else 0.0,
            distance=step.get("distance"),
            limit=calibration.distances[number] if number < len(calibration.distances) else None,
            answered=number < depth,
        )
        found.append(own)
    return found


@dataclass(frozen=True)
class NearCase:
    """A case of an index that lies near, as its record has it, and its picture as a data URL."""

    facts: Mapping[str, Any]
    picture: str | None

    @property
    def named(self) -> str:
        """Its id, and its labels where it has some."""
        labels = ", ".join(self.facts["labels"])
        return f"{self.facts['id']}" + (f" (label {labels})" if labels else "")


@dataclass(frozen=True)
class MemberAnswer:
    """What a member of a council said of a case, and what that depends on.

    ``seat`` is ``router``, a node, ``default`` or ``generalist``; ``record`` what its ``predict`` says; ``shares`` the
    probabilities of labels, the likeliest first; ``threshold`` that of a member with any number of labels a case;
    ``map`` that of ``covered``, the label whose probability is watched.
    """

    seat: str
    bundle: str
    reads: Sequence[str]
    record: Mapping[str, Any]
    weight: float | None = None
    levels: Sequence[Level] = ()
    shares: Sequence[tuple[str, float]] = ()
    threshold: float | None = None
    map: OcclusionMap | None = None
    nearest: Sequence[NearCase] = ()
    notes: Sequence[str] = ()

    @property
    def role(self) -> str:
        """``the router``, ``the expert at fundus``."""
        return f"the {self.seat}" if self.seat in _PLAIN else f"the expert at {self.seat}"

    @property
    def error(self) -> str | None:
        """Why it has no answer; None: it has one."""
        error: str | None = self.record.get("error")
        return error

    def sentence(self) -> str:
        """What it says, how sure it is, and what came second."""
        who = self.role[0].upper() + self.role[1:]
        if self.error is not None:
            return f"{who} has no answer: {self.error}"
        if "labels" in self.record:
            return f"{who} says {said(self.record)}. {self._several()}"
        if not self.levels:
            near = f"; the nearest of its cases is {self.nearest[0].named}" if self.nearest else ""
            return f"{who} answers with {said(self.record)}, not with labels{near}."
        given = [own for own in self.levels if own.answered]
        withheld = [own for own in self.levels if not own.answered]
        if not withheld:
            return f"{who} says {given[-1].given}."
        if not given:
            return f"{who} says unknown. The likeliest is {withheld[0].withheld}."
        return f"{who} says {given[-1].given}. It says no more: below, the likeliest is {withheld[0].withheld}."

    def _several(self) -> str:
        label, probability = self.shares[0]
        return (
            f"Each label with a probability of at least {percent(self.threshold)} is given; the likeliest is {label}, "
            f"with {percent(probability)}."
        )

    def bars(self) -> list[tuple[str, float]]:
        """The likeliest labels, and what all others have together; with any number of labels a case the first alone."""
        first, rest = list(self.shares[:_BARS]), self.shares[_BARS:]
        if not rest or "labels" in self.record:
            return first
        return [*first, (f"{counted(len(rest), 'other label')}", sum(share for _, share in rest))]

    def parts(self) -> list[dict[str, Any]]:
        """What each modality counted in a fusion, and what the answer is without it; [] where nothing can be left out.

        ``without`` is None where it was all that was given.
        """
        counts, without = self.record.get("counted", {}), self.record.get("without", {})
        return [
            {"name": name, "counted": counts[name], "without": said(without[name]) if name in without else None}
            for name in self.record.get("modalities", [])
        ]

    def tree(self) -> dict[str, Any]:
        """All of it but pictures, to be written as JSON."""
        shown = {} if self.map is None else {"label": self.map.label, "drops": self.map.drops_PP.tolist()}
        return {
            "seat": self.seat,
            "bundle": self.bundle,
            "weight": self.weight,
            "answer": dict(self.record),
            "levels": [asdict(own) for own in self.levels],
            "map": shown or None,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Question:
    """What was asked: the name of the image, its views as data URLs by their names, the text, and the metadata."""

    name: str
    pictures: Sequence[tuple[str, str]] = ()
    text: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExplanationContent:
    """All that the page says. ``expert`` is the seat whose answer is given, or ``unknown``.

    ``why`` says in sentences who was asked and for which reason; ``mixture`` is the answer of several together.
    """

    council: str
    question: Question
    router: MemberAnswer
    experts: Sequence[MemberAnswer]
    expert: str
    why: Sequence[str]
    mixture: Mapping[str, Any] | None = None
    licenses: Sequence[License] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    command: str = ""

    def sentences(self) -> list[str]:
        """The route, and the answer."""
        if self.mixture is not None:
            return [self.router.sentence(), f"Together the experts say {said(self.mixture)}."]
        own = [member.sentence() for member in self.experts if member.seat == self.expert]
        return [self.router.sentence(), *(own or ["No expert is asked, so the answer is unknown."])]

    def warnings(self) -> list[str]:
        """What forbids something in the licences of the starting weights."""
        return license_warnings(self.licenses)


def said(record: Mapping[str, Any] | None) -> str:
    """The answer of a record in a few words."""
    if record is None:
        return "unknown"
    if "error" in record:
        return "no answer"
    if "labels" in record:
        return ", ".join(record["labels"]) or "none of its labels"
    if "label" in record:
        return f"{record['label']}" + (
            "" if record["probability"] is None else f", with {percent(record['probability'])}"
        )
    return "an embedding"


def percent(share: float | None) -> str:
    """A probability as ``94.2 %``; none is rounded to 0 or 1."""
    if share is not None and share < 0.0005:
        return f"less than {wording.percent(0.001)}"
    if share is not None and share >= 0.9995:
        return f"more than {wording.percent(0.999)}"
    return wording.percent(share)


def _apart(value: float, least: float) -> tuple[str, str]:
    """A probability and a threshold with as many digits as it takes to tell them apart."""
    shown = percent(value), wording.percent(least)
    for digits in (2, 3, 4):
        if shown[0] != shown[1]:
            break
        shown = wording.percent(value, digits), wording.percent(least, digits)
    return shown


def write_explanation(folder: Path, content: ExplanationContent) -> Path:
    """Write explanation.html and explanation.json into ``folder``; the path of the page."""
    question = content.question
    write_json(
        folder / FIGURES,
        {
            "council": content.council,
            "image": question.name,
            "text": question.text,
            "metadata": dict(question.metadata),
            "sentences": [*content.sentences(), *content.why],
            "expert": content.expert,
            "combined": None if content.mixture is None else dict(content.mixture),
            "router": content.router.tree(),
            "experts": [member.tree() for member in content.experts],
        },
    )
    members = [content.router, *content.experts]
    page = environment(escape_html=True).get_template("explanation.html.j2")
    maps = {member.seat: drawn(member.map, size=_SIDE) for member in members if member.map is not None}
    write_text(folder / PAGE, page.render(content=content, maps=maps, said=said, share=percent))
    return folder / PAGE
