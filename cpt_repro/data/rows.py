"""Rows of text files, one after the other and in bounded memory: lines, what stands in them, documents."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cpt_repro.errors import UserError

CHUNK = 1 << 20
#: Bytes. A longer line is no document: a small file of one letter over and over may unpack to many gigabytes.
LONGEST_LINE = 1 << 27


def lines(path: Path, compression: Literal["gzip", "zstd"] | None, do: str) -> Iterator[bytes]:
    """Decompressed lines with their ends; a file may be several compressed streams behind each other.

    A file that is damaged or cut short, and a line that does not end, is a `UserError` with the advice `do`.
    """
    import pyarrow

    try:
        with pyarrow.input_stream(str(path), compression=compression) as stream:
            reader, number = io.BufferedReader(stream, CHUNK), 0
            if compression and not path.stat().st_size:
                raise OSError("it is empty")
            while line := reader.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE:
                    what = f"the line is longer than {LONGEST_LINE >> 20} MiB."
                    raise UserError(what, where=f"{path}, row {number}", do=do)
                yield line
    except (OSError, pyarrow.ArrowException) as error:
        what = f"the file is damaged or cut short ({' '.join(str(error).split())[:200]})."
        raise UserError(what, where=str(path), do=do) from None


def parsed(line: bytes, where: str, do: str) -> Any:
    """The JSON of a line."""
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a line of JSON in UTF-8 ({error}).", where=where, do=do) from None


@dataclass(frozen=True)
class Columns:
    """Where a row holds its document; nested columns with dots."""

    text: str
    domain: str | None
    #: What may stand in the column of the domain -> domain; without such a column the one domain there is.
    names: Mapping[str, str]

    def document(self, row: Any, where: str, do: str, identifier: str | None = None) -> dict[str, str]:
        """The document `{id, domain, text}` of a row; its id is that of the row where none is given."""

        def value(column: str) -> Any:
            inner = row
            for key in column.split("."):
                inner = inner[key]
            return inner

        try:
            identifier, text = identifier or value("id"), value(self.text)
            named = value(self.domain) if self.domain else next(iter(self.names))
            text.encode("utf-8")  # a lone surrogate passes JSON ("\ud800") but is no text
        except (KeyError, TypeError, AttributeError, UnicodeError) as error:
            columns = ", ".join(filter(None, (self.text, self.domain)))
            what = f"the columns {columns} do not hold texts ({error!r})."
            raise UserError(what, where=where, do=do) from None
        if not isinstance(named, str) or named not in self.names:
            known = f"Declare it in the manifest, which knows: {', '.join(self.names)}."
            raise UserError(f"the domain {named!r} is not declared.", where=where, do=known)
        return {"id": identifier, "domain": self.names[named], "text": text}
