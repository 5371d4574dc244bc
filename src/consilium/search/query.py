"""What a word of the command line is: an image, or a text to search for."""

from __future__ import annotations

import os
from typing import Literal

from consilium.core.errors import ConfigError
from consilium.core.places import exists, is_remote, local_path
from consilium.data.batches.rows import Query
from consilium.data.sources.files import IMAGE_EXTENSIONS, extension_of, is_image_file

Kind = Literal["image", "text"]


def query_of(given: str, *, kind: Kind | None) -> Query:
    """An image file (here or in a bucket) or a text; ``kind`` None tells them apart by whether there is such a file.

    A folder, a file that is no image and a missing file with the name of an image are ConfigErrors.
    """
    if kind == "text" or not given.strip():
        return Query(text=given)
    path = os.path.expanduser(local_path(given))
    if is_remote(path):
        return Query(path)
    if os.path.isdir(path):  # of a text that is no path, False
        raise ConfigError(f"the query {given} is a folder; give one image of it, or --text to search for this text.")
    if kind == "image" or is_image_file(path):
        return Query(path)
    as_text = "Give --text to search for these words, or --image if it is an image all the same."
    if exists(path):
        raise ConfigError(f"the query {given} is a file, but no image by its name. {as_text}")
    if extension_of(path) in IMAGE_EXTENSIONS:
        raise ConfigError(f"there is no image {given} (looked from {os.getcwd()}). {as_text}")
    return Query(text=given)
