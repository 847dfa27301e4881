"""The lines of files, compressed or not, one after the other and in bounded memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

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
                    raise UserError(what, where=f"{path}, line {number}", do=do)
                yield line
    except (OSError, pyarrow.ArrowException) as error:
        fault = f"the file is damaged or cut short ({' '.join(str(error).split())[:200]})."
        raise UserError(fault, where=str(path), do=do) from None
