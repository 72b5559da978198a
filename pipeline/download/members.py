"""The bytes of a tar, plain or compressed -> its regular files, front to back. Light.

This is our own reader, because an untrusted tar can make Python's tarfile loop forever
(CVE-2025-8194), recurse, or read a header of gigabytes. Here every step moves forward, and memory
holds only one header of at most MOST_HEADER bytes and one file. It reads POSIX (pax) and GNU names.
"""

import io
import re
from collections.abc import Callable, Iterator

import pyarrow as pa

BLOCK = 512
MOST_HEADER = 1 << 20  # bytes of a long name or of pax records
MOST_UNPACKED = 200  # times the size of the compressed tar; pictures hardly compress
BUFFER_BYTES = 1 << 20
PACKED = {".tar": None, ".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd", ".tar.bz2": "bz2"}
EMPTY_KINDS = b"123456"  # links, devices, folders, pipes: whatever their size says
RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")


class TarError(Exception):
    """The tar is truncated, damaged or malicious."""


def read_members(
    source: pa.NativeFile, name: str, wanted: Callable[[str, int], bool]
) -> Iterator[tuple[str, int, bytes]]:
    """Yield name, size in bytes and content of the regular files of a tar.

    The extension of `name` gives the compression. `wanted` says by a file's name and size whether
    its content is read; otherwise it is empty.

    Raises:
        TarError: says where it is broken.
        OSError: the storage failed, which says nothing about the tar.
    """
    stream = _Stream(source, name)
    long_name: bytes | None = None
    size_given: int | None = None
    before = "its beginning"
    while True:
        header = stream.read(BLOCK, f"after {before}")
        if not header.strip(b"\0"):
            break
        if not _is_header(header):
            raise TarError(f"a damaged header after {before}")
        kind = header[156:157]
        size = _number(header[124:136], before) if size_given is None else size_given
        if kind in (b"L", b"x"):
            if size > MOST_HEADER:
                raise TarError(f"a name of {size:,} bytes after {before}")
            content = stream.read_padded(size, before)
            records = (
                {b"path": content.rstrip(b"\0")} if kind == b"L" else _records(content, before)
            )
            if any(key.startswith(b"GNU.sparse") for key in records):
                raise TarError(f"a file stored as a sparse file after {before}")
            long_name = records.get(b"path", long_name)
            if b"size" in records:
                size_given = _number(records[b"size"], before, base=10)
            continue
        file = _text(long_name or _short_name(header))
        long_name = size_given = None
        if kind == b"S":  # a few bytes could expand to gigabytes
            raise TarError(f"{file} is stored as a sparse file")
        before = file
        if kind in (b"0", b"\0", b"7") and not file.endswith("/"):
            take = wanted(file, size)
            content = stream.read_padded(size, file) if take else b""
            if not take:
                stream.skip(size, file)
            yield file, size, content
        elif kind not in EMPTY_KINDS:
            stream.skip(size, file)
    if stream.rest().strip(b"\0"):
        raise TarError("something follows its end marker")


class _Stream:
    """The tar's uncompressed bytes, read forward and counted."""

    def __init__(self, source: pa.NativeFile, name: str) -> None:
        packed = next(kind for end, kind in PACKED.items() if name.lower().endswith(end))
        self._left = MOST_UNPACKED * source.size() if packed else None
        stream = pa.CompressedInputStream(source, packed) if packed else source
        # buffered, so that an object store does not get a request for every header
        self._buffered = io.BufferedReader(stream, BUFFER_BYTES)

    def read(self, size: int, where: str) -> bytes:
        try:
            content = self._buffered.read(size)
        except OSError as error:
            if re.search("ompress|inflate", str(error)):  # otherwise it is the storage
                raise TarError(f"{error} {where}") from None
            raise
        if self._left is not None:
            self._left -= len(content)
            if self._left < 0:
                raise TarError(f"it unpacks to over {MOST_UNPACKED} times its size")
        if len(content) < size:
            raise TarError(f"no end marker, so it is truncated or damaged {where}")
        return content

    def read_padded(self, size: int, file: str) -> bytes:
        content = self.read(size, f"in {file}")
        self.read(-size % BLOCK, f"in {file}")
        return content

    def skip(self, size: int, file: str) -> None:
        left = size + -size % BLOCK
        while left:
            left -= len(self.read(min(left, BUFFER_BYTES), f"in {file}"))

    def rest(self) -> bytes:
        return self._buffered.read(BUFFER_BYTES)


def _is_header(header: bytes) -> bool:
    """Return whether the checksum is right; its own field counts as spaces."""
    field = header[148:156].strip(b"\0 ")
    if not re.fullmatch(rb"[0-7]+", field):
        return False
    body = header[:148] + b" " * 8 + header[156:]
    signed = sum(body) - 256 * sum(byte > 127 for byte in body)  # as old programs wrote it
    return int(field, 8) in (sum(body), signed)


def _number(field: bytes, before: str, base: int = 8) -> int:
    """Return a size: octal, or base 256 after a byte of 0x80."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ") or b"0"
    if not re.fullmatch(rb"[0-7]{1,20}" if base == 8 else rb"[0-9]{1,20}", digits):
        raise TarError(f"a size that is no number of bytes after {before}")
    return int(digits, base)


def _records(content: bytes, before: str) -> dict[bytes, bytes]:
    """Return the records of a pax header, each `LENGTH KEY=VALUE` and a newline."""
    records = {}
    place = 0
    while place < len(content) and content[place]:
        found = RECORD.match(content, place)
        if found is None or place + int(found[1]) < found.end():
            raise TarError(f"a damaged pax header after {before}")
        end = place + int(found[1])
        records[found[2]] = content[found.end() : end - 1]
        place = end
    return records


def _short_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _text(name: bytes) -> str:
    """Return a name as text in which names that are not UTF-8 stay distinct."""
    return name.decode(errors="surrogateescape")
