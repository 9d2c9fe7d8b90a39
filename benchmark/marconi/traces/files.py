"""Reads and writes plain and compressed files, and cuts JSON into lines or objects."""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import zstandard

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: What reading a damaged or truncated file raises.
READ_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError)
COMPRESSIONS = (".xz", ".gz", ".zst")
_CHUNK = 1 << 16
_ENDS = re.compile(r"\.(json|jsonl|traj)(\.(xz|gz|zst))?$")
_TRAJECTORY = re.compile(r"\.traj(\.json)?(\.(xz|gz|zst))?$")
_STRING_OR_BRACE = re.compile(r'"(?:[^"\\]|\\.)*+"|[{}"]', re.DOTALL)


def open_binary(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed as its name ends (.xz, .gz, .zst).

    A compressed file that ends early raises EOFError where its data ends.
    """
    if path.suffix == ".xz":
        return cast(IO[bytes], lzma.open(path))
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdReader(path.open("rb")), _CHUNK)
    return path.open("rb")


def open_text_for_writing(path: Path) -> IO[str]:
    """A new text file, compressed as its name ends (.xz, .gz, .zst)."""
    if path.suffix == ".xz":
        return lzma.open(path, "wt", encoding="utf-8")
    if path.suffix == ".gz":
        return gzip.open(path, "wt", encoding="utf-8")
    if path.suffix == ".zst":
        return cast(IO[str], zstandard.open(path, "wt", encoding="utf-8"))
    return path.open("w", encoding="utf-8")


def bare_suffix(path: Path) -> str:
    """How the name ends below its compression's ending: ``.jsonl`` of ``a.jsonl.xz``."""
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def json_lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Line number and content of each line that is not blank."""
    for number, line in enumerate(stream, 1):
        if line.strip():
            yield number, line


def whole_file(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The file as one piece, if it is not blank."""
    content = stream.read()
    if content.strip():
        yield 1, content


def trace_files(folder: Path) -> list[Path]:
    """Files of a folder and its sub-folders that may hold traces, by name.

    Where some are trajectories by their names (.traj, .traj.json), they are those alone.
    """
    found = sorted(file for file in folder.rglob("*") if _ENDS.search(file.name) and file.is_file())
    return [file for file in found if _TRAJECTORY.search(file.name)] or found


def json_objects(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Line number and text of each outermost ``{...}``: a JSON list's objects, or a document.

    Holds one object at a time. Braces and quotes are matched, nothing else is checked; stray text
    between objects is handed out as if it were one.

    Raises:
        EOFError: the file ends inside an object; the message names the line where it began.
    """
    decode = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape").decode
    # ``line`` is that of text[mark]; everything before ``mark`` has been handed out.
    text, mark, at, depth, line = "", 0, 0, 0, 1
    while chunk := stream.read(max(_CHUNK, len(text))):
        text += decode(chunk)
        while found := _STRING_OR_BRACE.search(text, at):
            token = found.group()
            if token == '"':
                break
            at = found.end()
            if token == "{":
                depth += 1
                if depth == 1:
                    yield from _stray(line, text[mark : found.start()])
                    line += text.count("\n", mark, found.start())
                    mark = found.start()
            elif token == "}" and depth:
                depth -= 1
                if depth == 0:
                    yield line, text[mark:at].encode("utf-8", errors="surrogateescape")
                    line += text.count("\n", mark, at)
                    mark = at
        if depth == 0:
            at = found.start() if found else len(text)
            yield from _stray(line, text[mark:at])
            line += text.count("\n", mark, at)
            mark = at
        text, at, mark = text[mark:], at - mark, 0
    if depth:
        raise EOFError(f"the file ends inside the object that begins in line {line}")
    yield from _stray(line, text)


def _stray(line: int, text: str) -> Iterator[tuple[int, bytes]]:
    rest = text.lstrip(" \t\r\n,[]\ufeff")
    if rest:
        before = text.count("\n", 0, len(text) - len(rest))
        yield line + before, rest.rstrip().encode("utf-8", errors="surrogateescape")


class _ZstdReader(io.RawIOBase):
    """Bytes of a .zst file; unlike zstandard's own reader, notices that a frame is cut off."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun = False
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        while not self._ready:
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
                self._begun = False
            data = data or self._raw.read(_CHUNK)
            if not data:
                if self._begun:
                    raise EOFError("compressed file ended before the end of its frame")
                return 0
            self._begun = True
            self._ready = self._frame.decompress(data)
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
