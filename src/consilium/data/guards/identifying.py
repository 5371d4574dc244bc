"""What could tell who a patient is, in the files of a folder that is to leave: a last look before they do.

Looked at are texts (cards, configs, labels, vocabularies that were learned from texts) and pictures with their headers.
What it cannot see: a name without a title that no list gives, a face, and letters burned into the pixels of a picture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from consilium.core.errors import ConfigError

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_TITLES = r"(?:[Dd]r|[Pp]rof|[Mm]r|[Mm]rs|[Mm]s|[Mm]me)\.?|[Hh]err|[Ff]rau|[Pp]atient(?:in)?:?"
_FOLDERS = "home|Users|root|mnt|media|data|srv|scratch|tmp|var|work"
_PATTERNS = (
    (
        "a date",
        rf"\b(?:19|20)\d\d[-/.](?:0?[1-9]|1[0-2])[-/.](?:0?[1-9]|[12]\d|3[01])\b"
        rf"|\b\d{{1,2}}[./-]\d{{1,2}}[./-](?:19|20)\d\d\b"
        rf"|\b(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\b"
        rf"|\b\d{{1,2}}\.? {_MONTH},? (?:19|20)\d\d\b|\b{_MONTH} \d{{1,2}},? (?:19|20)\d\d\b",
    ),
    (
        "a DICOM tag of a person or a study",
        r"\b(?:Patient(?:'s ?)?(?:Name|ID|BirthDate|Address|Comments)|OtherPatientIDs|AccessionNumber|InstitutionName"
        r"|(?:Referring|Performing|Requesting)Physician(?:s?Name)?|OperatorsName|(?:Study|Series|SOP)InstanceUID)\b"
        r"|\(0010, ?[0-9A-Fa-f]{4}\)|\b[0-2](?:\.\d+){5,}\b",
    ),
    ("a name as DICOM writes it", r"\b[^\W\d_]{2,}\^[^\W\d_]+"),
    ("a name", rf"\b(?:{_TITLES}) [A-ZÀ-Þ][^\W\d_]{{2,}}"),
    ("an address of a mailbox", r"\b[\w.+-]+@[\w-]+\.[\w.]+\b"),
    ("a number as long as that of a record", r"(?<![\w.^-])\d{7,}(?![\w.])"),
    ("a path of a machine", rf"(?<![\w/.:])(?:/(?:{_FOLDERS})/|[A-Za-z]:\\)[^\s\"'`|)]+"),
    ("the name of an image file", r"\b[\w-]+\.(?:dcm|dicom|nii(?:\.gz)?|png|jpe?g|tiff?|bmp|svs|ndpi|mha|nrrd)\b"),
)  # fmt: skip
_READ = {what: re.compile(pattern, re.IGNORECASE if what == "a date" else 0) for what, pattern in _PATTERNS}
_TEXTS = {".md", ".json", ".txt", ".csv", ".html", ".yaml", ".yml", ".jsonl"}
_PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif"}
_PEOPLE = (
    "PatientName", "PatientID", "PatientBirthDate", "OtherPatientIDs", "AccessionNumber", "StudyDate",
    "InstitutionName", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "StudyInstanceUID",
)  # fmt: skip
VOCABULARY = "tokenizer.json"


@dataclass(frozen=True)
class Finding:
    """What was found in a file: of which kind, how often, and an example."""

    file: str
    what: str
    count: int
    example: str

    def __str__(self) -> str:
        times = "" if self.count == 1 else f" ({self.count} times)"
        return f"{self.file}: {self.what}{times}: {self.example}"


def identifying(folder: Path, *, names: Sequence[str] = (), learned_vocabulary: bool = False) -> list[Finding]:
    """What the files of a folder hold that could tell who a patient is, file by file.

    ``names`` are looked for as whole words in any case. ``learned_vocabulary``: the words of ``tokenizer.json`` come
    from the texts of patients; else they are public, and not looked at.
    """
    known = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\b", re.IGNORECASE) if names else None
    found: list[Finding] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        place = path.relative_to(folder).as_posix()
        if path.name == VOCABULARY:
            lines = _vocabulary(path) if learned_vocabulary else []
        elif path.suffix.lower() in _TEXTS:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        else:
            lines = list(_header(path))
        found += _in_lines(place, lines, known)
    return found


def read_names(file: Path) -> list[str]:
    """The names of a file, one a line; a file that cannot be read is a ConfigError."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the list of names {file} cannot be read ({error}); give a text file, a name a line."
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _in_lines(place: str, lines: Iterable[str], known: re.Pattern[str] | None) -> Iterator[Finding]:
    text = "\n".join(lines)
    read = _READ if known is None else {"a name of the list": known, **_READ}
    for what, pattern in read.items():
        if matches := [match[0] for match in pattern.finditer(text)]:
            yield Finding(place, what, len(matches), matches[0])


def _vocabulary(path: Path) -> list[str]:
    """The words of a tokenizer, without the marks of pieces."""
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    return [str(word).removeprefix("##").removesuffix("</w>") for word in model.get("vocab", ())]


def _header(path: Path) -> Iterator[str]:
    """What the header of a picture says in words."""
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom"):
        yield from _dicom(path)
    elif path.suffix.lower() in _PICTURES:
        from PIL import Image

        with Image.open(path) as image:
            values = [*image.info.items(), *image.getexif().items()]
        yield from (f"{key}: {value}" for key, value in values if isinstance(value, str))


def _dicom(path: Path) -> Iterator[str]:
    try:
        from pydicom import dcmread
    except ImportError:
        yield "PatientName: this DICOM file was not read, since pydicom is not installed (extra dicom)"
        return
    fields = dcmread(path, stop_before_pixels=True, force=True)
    yield from (f"{key}: {fields.get(key)}" for key in _PEOPLE if str(fields.get(key, "") or ""))
