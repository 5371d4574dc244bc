"""Probing a predictor: its frozen image features over labelled cases, its prompts, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from consilium.core.errors import ConfigError, ConsiliumError, DataError
from consilium.core.evaluation import Evaluation, Outputs
from consilium.core.labels import LabelTree
from consilium.core.reporter import Reporter, Silent, counted, some
from consilium.data.batches.rows import Query
from consilium.data.cases.captions import label_words
from consilium.data.cases.cases import Studied
from consilium.data.config import DataConfig
from consilium.data.guards.texts import naming
from consilium.data.store.prepare import prepare
from consilium.data.store.store import CaseTable
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.probes.config import ProbesConfig
from consilium.evaluation.probes.evaluate import evaluate_probes
from consilium.evaluation.probes.zero_shot import ClassEmbeddings, Prompts, ensemble, prompts_of
from consilium.models.tokenizer import FOREIGN
from consilium.predictor import Predictor, case_outputs

NAMED = 0.001  # of the training texts: from here on a label counts as known by its name


@dataclass(frozen=True)
class Probed:
    """What all probes found, and the features of the judged split that they found it in."""

    evaluation: Evaluation
    outputs: Outputs


def probe(
    predictor: Predictor,
    studied: Studied[Any],
    config: ProbesConfig,
    *,
    split: str,
    evaluation: EvaluationConfig,
    trained_on: DataConfig | None,
    reporter: Reporter,
) -> Probed:
    """Judge the frozen image tower on one split by every probe; those that learn do so on train.

    ``trained_on`` is the data of the model's own training, whose texts may have named the labels; None: it had none.
    """
    cases = studied.cases
    splits = ["train", split] if config.learned else [split]
    _refuse_splits(cases.rows, config, split)
    labels = _labels(cases.table, multi_label=config.multi_label)
    own = cases.table.labels
    targets = labels.multi_hot(own) if config.multi_label else labels.indices(own)
    prompts = _prompts(labels, config)
    classes = None if prompts is None else embedded(predictor, prompts)
    labelled = replace(studied, targets=targets)
    found = {name: _features(predictor, labelled, name, features=config.features, reporter=reporter) for name in splits}
    notes: list[str] = []
    if prompts is not None:
        found[split], notes = _having_all_views(found[split])
    judged = evaluate_probes(
        config,
        found[split],
        train=found.get("train") if config.learned else None,
        labels=labels,
        classes=None if classes is None else replace(classes, scale=float(found[split].arrays["scale"][0])),
        evaluation=evaluation,
        split=split,
        reporter=reporter,
    )
    if config.learned and (unread := found["train"].unread):
        notes.append(f"{counted(len(unread), 'training case')} could not be read: probes learn from the others.")
    if prompts is not None:
        notes += known_as_text(prompts, trained_on) + _foreign(predictor, prompts)
    tables = {**judged.tables, "notes": [*({"note": own} for own in notes), *judged.tables.get("notes", [])]}
    if prompts is not None:
        tables["prompts"] = [_row(own) for own in prompts]
    return Probed(replace(judged, tables={name: rows for name, rows in tables.items() if rows}), found[split])


def _refuse_splits(rows: Mapping[str, np.ndarray], config: ProbesConfig, split: str) -> None:
    """Probes that learn need a train split, and another one to be judged on."""
    if not config.learned:
        return
    what = some([f"probes.{name}" for name in config.learned], 3)
    if split in ("train", "all"):
        raise ConfigError(
            f"{what} would be judged on the training cases that they learn from (--split {split}); choose val or test, "
            "or keep probes to zero_shot."
        )
    if not len(rows["train"]):
        raise DataError(
            f"{what} learn from a train split, and none of these cases is in one. Give rows the split 'train' "
            "(columns.split of a source) or a share of the groups (data.split), or keep probes to zero_shot."
        )


def _labels(table: CaseTable, *, multi_label: bool) -> LabelTree:
    """The labels of all cases, whatever their split; none, only one, or several a case unasked are a DataError."""
    labels = LabelTree.from_labels(table.labels)
    if not len(labels):
        raise DataError(
            f"probes need labels, and none of {counted(len(table), 'case')} has one. Name their column (columns.label "
            "of a source)."
        )
    if multi_label:
        return labels
    for name, own in zip(table.ids, table.labels, strict=True):
        if len(own) > 1:
            raise DataError(
                f"case {name} has {len(own)} labels ({', '.join(own)}); set probes.multi_label: true, or give one "
                "label a case."
            )
    if len(labels) < 2:
        raise DataError(
            f"all cases have one label ({labels.names[0]}), so that there is nothing to tell apart; probes need cases "
            "of two labels or more."
        )
    return labels


def _prompts(labels: LabelTree, config: ProbesConfig) -> list[Prompts] | None:
    if config.zero_shot is None:
        return None
    words = {label: label_words(label) for label in labels.names}
    return prompts_of(labels.names, config.zero_shot, words=words, multi_label=config.multi_label)


def embedded(predictor: Predictor, prompts: Sequence[Prompts]) -> ClassEmbeddings:
    """The embeddings of the prompts of every label; their scale is that of the images, and 1 until it is known."""
    texts = list(dict.fromkeys(text for own in prompts for text in (*own.positive, *own.negative)))
    answers = predictor.predict([Query(text=text) for text in texts])
    found = {text: np.array(answer["text_embedding"]) for text, answer in zip(texts, answers, strict=True)}

    def classes(of: Callable[[Prompts], Sequence[str]]) -> np.ndarray:
        return ensemble([np.stack([found[text] for text in of(own)]) for own in prompts])

    negative = classes(lambda own: own.negative) if prompts[0].negative else None
    return ClassEmbeddings(classes(lambda own: own.positive), negative, 1.0)


def _features(predictor: Predictor, studied: Studied[Any], split: str, *, features: str, reporter: Reporter) -> Outputs:
    """Features and embeddings of the images of a split, each seen once."""
    progress = partial(reporter.progress, f"features of {split}")
    found = case_outputs(predictor, studied, split, ask=predictor.task.probed, progress=progress)
    if "embedding" not in found.arrays:
        raise ConfigError(
            "probes ask for embeddings of images, which this bundle has none of; they are for experts (task.kind: "
            "align). Leave `probes` out."
        )
    arrays = {
        "features": found.arrays[features],
        "image_embeddings": found.arrays["embedding"],
        "scale": found.arrays["scale"],
    }
    return replace(found, arrays=arrays)


def _foreign(predictor: Predictor, prompts: Sequence[Prompts]) -> list[str]:
    """Whether the prompts are in another language than the text tower reads."""
    texts = [text for own in prompts for text in (*own.positive, *own.negative)]
    if (share := predictor.task.unknown_share(texts)) <= FOREIGN:
        return []
    return [
        f"The text tower does not know {100 * share:.0f} % of the tokens of the prompts (the first: "
        f"'{texts[0][:60]}'): are they in the language of its texts? What it does not know is all the same to it."
    ]


def _having_all_views(outputs: Outputs) -> tuple[Outputs, list[str]]:
    """The cases that have an embedding, and a note on the others: those that lack a view which the task names."""
    rows = np.flatnonzero(outputs.arrays["image_embeddings"].any(axis=1))
    if not len(rows):
        raise DataError("no case has all the views that the bundle names, so that none has an embedding to probe.")
    lacking = len(outputs.ids) - len(rows)
    if not lacking:
        return outputs, []
    return outputs.take(rows), [
        f"Left out, since a view is missing and there is no embedding: {counted(lacking, 'case')}."
    ]


def known_as_text(prompts: Sequence[Prompts], trained_on: DataConfig | None) -> list[str]:
    """Whether the texts of the training named the labels, so that zero-shot is of labels that it knew."""
    if trained_on is None:
        return []
    written = [source.name for source in trained_on.sources if source.captions.template]
    try:
        table = prepare(trained_on, reporter=Silent()).store.table
    except (ConsiliumError, OSError) as error:
        first = str(error).splitlines()[0]
        return [f"The training texts cannot be looked at, so that they may name the labels of zero-shot: {first}"]
    rows = [row for row, split in enumerate(table.splits) if split == "train" and table.captions(row)]
    counts = naming(table, rows, {own.label: (*own.phrases, label_words(own.label)) for own in prompts})
    known = {label: count / len(rows) for label, count in counts.items() if rows and count / len(rows) >= NAMED}
    if not known:
        return []
    shares = some([f"{label} in {share:.1%}" for label, share in sorted(known.items(), key=lambda own: -own[1])], 6)
    made = f" The captions of {some(written, 3)} were written from labels." if written else ""
    return [
        f"The texts that the expert was trained on name {len(known)} of {len(prompts)} labels ({shares} of them): it "
        f"learned these words beside images, so that zero-shot is not of labels that it never met.{made}"
    ]


def _row(prompts: Prompts) -> dict[str, Any]:
    negative = {"against": " | ".join(prompts.negative)} if prompts.negative else {}
    return {"label": prompts.label, "prompts": " | ".join(prompts.positive), **negative}
