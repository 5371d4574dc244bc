"""From texts to tokens: the tokenizer of a text tower, and a WordPiece vocabulary learned from texts.

Axes in names: B text in a batch, T token.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from consilium.core.errors import BundleError, DataError
from consilium.core.files import write_text
from consilium.core.reporter import counted

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"
FOREIGN = 0.5  # share of unknown tokens above which texts are in another language
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # their ids are their places
_PART = "##"  # before a piece that is not the first of its word


@dataclass(frozen=True)
class Padded:
    """Texts of a batch as int64 [B, T]: tokens, and 1 where a token belongs to the text, 0 where it is padding."""

    tokens_BT: Tensor
    attention_BT: Tensor


class Tokenizer:
    """Cuts texts into tokens; make one with ``build_tokenizer`` or ``Tokenizer.load``.

    It is pickled as its definition and comes to life in the process that uses it. It encodes one text at a time, so
    that the library starts no threads, which a later fork of the process could not take along.
    """

    def __init__(self, definition: str) -> None:
        """``definition`` is the text of a ``tokenizer.json`` whose truncation and padding are set."""
        self.definition = definition
        self._alive: tokenizers.Tokenizer | None = None

    @classmethod
    def made_of(
        cls, definition: str, *, context_length: int, pad_id: int, to_context: bool = False, instruction: str = ""
    ) -> Tokenizer:
        """Any ``tokenizer.json``, cut at ``context_length`` tokens (special ones count), padded with ``pad_id``.

        A batch is padded to its longest text, or with ``to_context`` every text to the whole context. ``instruction``
        is put before every text but an empty one; it is a part of the definition from then on.
        """
        import tokenizers

        library = tokenizers.Tokenizer.from_str(definition)
        if instruction:
            own = [] if library.normalizer is None else [library.normalizer]
            before = tokenizers.normalizers.Prepend(instruction)
            library.normalizer = tokenizers.normalizers.Sequence([before, *own])
        library.enable_truncation(context_length)
        length = context_length if to_context else None
        library.enable_padding(pad_id=pad_id, pad_token=library.id_to_token(pad_id) or "", length=length)
        return cls(library.to_str())

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer that ``save`` wrote; one that is missing or damaged is a BundleError."""
        file = folder / TOKENIZER_FILE
        try:
            tokenizer = cls(file.read_text(encoding="utf-8"))
            library = tokenizer._library()
        except Exception as error:  # the library has no error of its own for a damaged file
            raise BundleError(f"the tokenizer {file} cannot be read ({error}). Copy it again.") from error
        if library.truncation is None or library.padding is None:
            raise BundleError(f"{file} does not say how long a text may be; it is not the tokenizer of a bundle.")
        return tokenizer

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json``, which the tokenizers library reads as well, into a folder."""
        write_text(folder / TOKENIZER_FILE, self.definition)

    @property
    def context_length(self) -> int:
        """The most tokens of a text."""
        return int((self._library().truncation or {})["max_length"])

    @property
    def pad_id(self) -> int:
        """The token that fills a batch up."""
        return int((self._library().padding or {})["pad_id"])

    @property
    def pads_with_special(self) -> bool:
        """Whether that token is a special one, and no word; of CLIP's own tokenizer it is a word."""
        return self.pad_id in {
            number for number, own in self._library().get_added_tokens_decoder().items() if own.special
        }

    @property
    def pads_to(self) -> int:
        """The length of every text at least; 0 where a batch is as long as its longest text."""
        return int((self._library().padding or {}).get("length") or 0)

    @property
    def vocabulary_size(self) -> int:
        """The rows that a table of embeddings needs: the largest token id and one."""
        return max(self._library().get_vocab(with_added_tokens=True).values()) + 1

    def token(self, number: int) -> str:
        """The token of an id; '' where the vocabulary has none."""
        return self._library().id_to_token(number) or ""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, special tokens included, cut at the context length; never none at all."""
        found = [self._library().encode(text) for text in texts]
        return [text.ids[: sum(text.attention_mask)] or [self.pad_id] for text in found]

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the context, so that ``encode`` leaves their end out."""
        return sum(bool(self._library().encode(text).overflowing) for text in texts)

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Which share of the tokens of texts the vocabulary does not know; special ones do not count."""
        model = json.loads(self.definition)["model"]
        number = model.get("unk_id")
        if number is None and model.get("unk_token") is not None:
            number = self._library().token_to_id(model["unk_token"])
        encoded = [self._library().encode(text) for text in texts]
        ids = [
            own
            for text in encoded
            for own, special, there in zip(text.ids, text.special_tokens_mask, text.attention_mask, strict=True)
            if there and (own == number or not special)
        ]
        return ids.count(number) / len(ids) if number is not None and ids else 0.0

    def pad(self, ids: Sequence[Sequence[int]]) -> Padded:
        """Encoded texts side by side, filled up to the longest, or to the whole context."""
        longest = max(map(len, ids), default=0) and max(self.pads_to, *map(len, ids))
        tokens = [[*row, *[self.pad_id] * (longest - len(row))] for row in ids]
        attention = [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
        shape = (len(ids), longest)
        return Padded(torch.tensor(tokens).long().reshape(shape), torch.tensor(attention).long().reshape(shape))

    def _library(self) -> tokenizers.Tokenizer:
        if self._alive is None:
            import tokenizers

            self._alive = tokenizers.Tokenizer.from_str(self.definition)
        return self._alive

    def __getstate__(self) -> dict[str, object]:
        return {"definition": self.definition, "_alive": None}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and other.definition == self.definition

    def __hash__(self) -> int:
        return hash(self.definition)


def recut(definition: str, *, context_length: int) -> Tokenizer:
    """The tokenizer of a bundle, which cuts texts at another length than there."""
    own = Tokenizer(definition)
    return Tokenizer.made_of(definition, context_length=context_length, pad_id=own.pad_id, to_context=bool(own.pads_to))


def train_tokenizer(texts: Sequence[str], *, vocabulary_size: int, context_length: int) -> Tokenizer:
    """A lower-cased WordPiece tokenizer with BERT's special tokens, learned from ``texts``.

    The same texts give the same vocabulary. At most half of it are single characters, the most frequent ones: a word
    with another one is unknown. Texts that are all empty, or all the same, are a DataError.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    different = {text.strip() for text in texts} - {""}
    if len(different) < 2:
        what = f"all {counted(len(texts), 'text')} are the same" if different else "no training case has a text"
        raise DataError(
            f"a tokenizer cannot be learned: {what}. Check the column of texts (columns.text of the source), or set "
            "task.text.name to a pretrained encoder, which brings its own tokenizer."
        )
    normalizer, splitter = normalizers.BertNormalizer(strip_accents=False), pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)) if word
    )
    alphabet = _alphabet(words, at_most=(vocabulary_size - len(_SPECIAL)) // 4)
    known = (word for word in sorted(words) for _ in range(words[word]) if alphabet.issuperset(word))
    # The library numbers what it meets in an order of chance, and breaks ties by number: so all is numbered before.
    first = [*_SPECIAL, *sorted(alphabet), *(f"{_PART}{character}" for character in sorted(alphabet))]
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with _one_thread():
        trainer = trainers.WordPieceTrainer(vocab_size=vocabulary_size, special_tokens=first, show_progress=False)
        library.train_from_iterator(known, trainer)
    learned = Library(models.WordPiece(vocab=library.get_vocab(), unk_token="[UNK]"))
    learned.add_special_tokens(list(_SPECIAL))
    learned.normalizer, learned.pre_tokenizer = normalizer, splitter
    ends = [("[CLS]", _SPECIAL.index("[CLS]")), ("[SEP]", _SPECIAL.index("[SEP]"))]
    learned.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return Tokenizer.made_of(learned.to_str(), context_length=context_length, pad_id=_SPECIAL.index("[PAD]"))


def _alphabet(words: Counter[str], *, at_most: int) -> set[str]:
    """The most frequent characters; of equally frequent ones the first."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    return set(sorted(counts, key=lambda character: (-counts[character], character))[:at_most])


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the library from starting threads, after which it would warn at every fork of this process."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before
