"""Captions as they are trained on."""

import re
import unicodedata

LEAST = 20  # characters of a caption that says something
SPECIAL = re.compile(r"[^\w\s.,;:%()/+\-'\"<>=°µ²³]|_")


def clean_caption(text: str) -> str:
    """A caption without special characters and without needless white space.

    Letters (of any script), digits and ``. , ; : % ( ) / + - ' " < > = ° µ ² ³`` stay; anything
    else becomes a space. Runs of white space, line breaks included, become one space, none
    at either end.
    """
    return " ".join(SPECIAL.sub(" ", unicodedata.normalize("NFC", text)).split())
