"""The bases of the ``task`` section of a config and of what a bundle knows; no torch."""

from __future__ import annotations

from typing import Self

from consilium.core.config import Config
from consilium.core.contracts import Needs
from consilium.core.inputs import InputStatistics


class TaskSection(Config):
    """The ``task`` section of a family: what can be asked before anything is built."""

    kind: str

    @property
    def needs(self) -> Needs:
        """Which fields of a case the task reads."""
        raise NotImplementedError

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the task's parameter groups."""
        raise NotImplementedError

    @property
    def monitor(self) -> str:
        """The validation metric that chooses the best weights where ``trainer.monitor`` names none."""
        raise NotImplementedError

    @property
    def pretrained_groups(self) -> tuple[str, ...]:
        """The parameter groups that start from trained weights."""
        return ()

    @property
    def holds_start(self) -> bool:
        """Whether the task compares itself, while it learns, with what it began with."""
        return False

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of a case that an answer is made from."""
        needs = self.needs
        return tuple(name for name in ("image", "text") if getattr(needs, name) != "no")

    @property
    def staged(self) -> bool:
        """Whether a training is made of several runs, each with settings of its own."""
        return False

    @property
    def solved(self) -> bool:
        """Whether one step over all training cases finds the weights, in the place of an optimizer."""
        return False

    @property
    def origin(self) -> str | None:
        """A trained bundle that the task goes on from; None: there is none."""
        return None

    @property
    def borrows(self) -> tuple[str, ...]:
        """Trained bundles of which the task takes a tower."""
        return ()

    @property
    def towers(self) -> dict[str, str]:
        """The names of its encoders, by what a report calls them."""
        return {}

    @property
    def saves_memory(self) -> str:
        """What to change where memory does not suffice for a training step; {accumulate} is ``trainer.accumulate``."""
        return (
            "Halve data.loader.batch_size and double trainer.accumulate (now {accumulate}): the gradient stays the "
            "same; or choose a smaller data.image.size or task.vision.name."
        )

    def with_vectors_in(self, folder: str | None) -> Self:
        """The section where files of vectors with bare names lie in ``folder``; None: where they are."""
        return self

    @property
    def gives(self) -> tuple[str, ...]:
        """The keys of an answer."""
        raise NotImplementedError


class Knowledge(Config):
    """What the training cases taught beside the weights; a bundle keeps it as JSON.

    ``mentions`` are phrases that name a label: sentences with one are taken out of every text that is read. ``inputs``
    say what the training cases are like; None: a bundle of an earlier version, or one that was not trained.
    """

    training_cases: int
    mentions: tuple[str, ...] = ()
    inputs: InputStatistics | None = None
