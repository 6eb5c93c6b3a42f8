"""Text from data and from other people's files, as a terminal or a log may show it."""

import re

# Control characters, which can move the cursor, rename a window or rewrite a line; line ends of
# Unicode; marks that turn the direction of what is read; and halves of surrogate pairs. Those that
# join letters (U+200C, U+200D) stay, for words of several scripts need them.
_UNSEEN = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_OF_LINES = re.compile(f"[{_UNSEEN}]")
_OF_TEXT = re.compile(f"(?![\n\t])[{_UNSEEN}]")


def printable(text: str) -> str:
    """The text with each character that is not shown written out, as in ``\\x1b``.

    Line ends and tabs stay.
    """
    return _OF_TEXT.sub(_escape, text)


def one_line(text: str) -> str:
    """The same of a text that must not break the line that it stands in."""
    return _OF_LINES.sub(_escape, text)


def _escape(found: re.Match) -> str:
    return ascii(found.group())[1:-1]
