"""The one error that users see: a paragraph that says what is wrong, where, and what to do next."""

from __future__ import annotations

import os
import re
import sys
from urllib.parse import quote, unquote

#: What stands for a secret; and how short a part of an address may be that is hidden wherever it stands.
HIDDEN, _SHORTEST = "***", 6
#: Characters of a part of an error that are shown: some quote what stands in a file.
_LONGEST = 1000

#: What a terminal obeys, what turns the order of letters, and halves of surrogate pairs.
_UNSHOWN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _without_secrets(match: re.Match[str]) -> str:
    """An address without what stands before its host and behind its path."""
    scheme, mark, rest = match[0].partition("://")
    user, at, place = rest.rpartition("@")
    place, *query = re.split("[?#]", place, maxsplit=1)
    return scheme + mark + (HIDDEN + at if at else "") + place + ("?" + HIDDEN if mark and query else "")


def _secrets() -> set[str]:
    """What addresses in this program's variables and arguments hold of secrets, in all spellings."""
    given = [value for name, value in os.environ.items() if name.startswith("CPT_REPRO_")]
    found: set[str] = set()
    for address in (value.partition("://")[2] for value in (*given, *sys.argv) if "://" in value):
        user, _, place = address.rpartition("@")
        query = place.partition("?")[2]
        parts = [user, user.partition(":")[2], *re.split("[:/@]", user), query]
        for part in (*parts, *re.findall("=([^&]*)", query)):
            meant = unquote(part)
            found |= {part, meant, quote(meant), quote(meant, safe="")}
    return {secret for secret in found if len(secret) >= _SHORTEST}


def redacted(text: str) -> str:
    """`text` without user names, passwords and queries of addresses, whoever wrote them into it.

    What this program was given is hidden without its address too: libraries tell of a part of one.
    """
    if secrets := sorted(_secrets(), key=len, reverse=True):
        text = re.sub("|".join(map(re.escape, secrets)), HIDDEN, text, flags=re.IGNORECASE)
    return re.sub(r"""[^\s"'<>]+""", _without_secrets, text) if "://" in text else text


def briefly(error: BaseException) -> str:
    """The beginning of what a library says, for a sentence of ours; secrets go before it is cut."""
    return " ".join(redacted(str(error)).split())[:200]


def _printable(text: str) -> str:
    """`text` with what moves a terminal's cursor, or turns the order of letters, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plain(text: str) -> str:
    """Text that shows what it is, on a terminal and elsewhere; ends of lines are kept."""
    return _UNSHOWN.sub("\ufffd", text)


class UserError(Exception):
    """Something the user can put right. The command line prints it without a traceback and exits with status
    2. No secret of an address is in it, and it is one line.
    """

    def __init__(self, what: str, *, where: str | None = None, do: str | None = None):
        self.what, self.do = what, do
        parts = [_printable(redacted(part)) for part in (f"{where}:" if where else "", what, do) if part]
        super().__init__(" ".join(p if len(p) <= _LONGEST else f"{p[:_LONGEST]}…" for p in parts))


class StorageError(UserError):
    """A storage that is full, read-only or forbidden: whatever else is written there would fail too."""
