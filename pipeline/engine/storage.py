"""Read, list and atomically write files in a folder, local or s3://, gs:// …. Light.

    Storage.open("data/cc3m") or Storage.open("s3://bucket/cc3m?region=eu-west-1")

A file is written whole or not at all. Locally: a temporary name beside the target, fsync, rename.
Object stores: the content is first written to the local disk, then uploaded, then its size on
the store is compared. Names of unfinished files start with a dot and are never listed. A folder's
owner has its unfinished files in a hidden folder of its own; without that it cannot finish any.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

COPY_BYTES = 8 << 20
SETTLE_SECONDS = 2.0  # after which two writers of one object see the same content
UNFINISHED = ".writing"


@dataclass(frozen=True)
class FileInfo:
    """A written file: its size in bytes and the lower-case hex SHA-256 of its content."""

    bytes: int
    sha256: str


class Storage:
    """A folder, local or on an object store; paths are relative to it and use "/"."""

    def __init__(self, filesystem: fs.FileSystem, base: str, uri: str, owner: str = "") -> None:
        self.uri, self.owner = uri, owner
        self.is_local = isinstance(filesystem, fs.LocalFileSystem)
        self.local_path = Path(base) if self.is_local else None
        self._filesystem = filesystem
        self._base = base.rstrip("/")

    @classmethod
    def open(cls, uri: str | Path) -> Self:
        """Open a folder, which need not exist yet.

        It is a local path, or a URI that pyarrow.fs supports, with options such as
        `?endpoint_override=host:port&scheme=http`.

        Raises:
            ValueError: the file system is unknown.
        """
        text = str(uri)
        filesystem, base = fs.LocalFileSystem(), str(Path(text).expanduser().absolute())
        if "://" in text:
            try:
                filesystem, base = fs.FileSystem.from_uri(text)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ValueError(f"{text} is not a folder that codeseg can open: {error}") from None
        return cls(filesystem, base, base if filesystem.type_name == "local" else text)

    def written_by(self, owner: str) -> "Storage":
        """Return the folder for writing by the owner of what it `claim`ed.

        On an object store, which has no claims, anyone can write.
        """
        return Storage(self._filesystem, self._base, self.uri, owner)

    def claim(self, folder: str, owner: str) -> None:
        """Give a local folder to an owner with a unique name; a former one can finish no file.

        Unfinished files, left by killed processes or still being written, are removed.
        """
        if self.local_path is None:
            return
        mine = _unfinished(self.local_path / folder, owner)
        mine.mkdir(parents=True)
        for other in mine.parent.glob(f".*{UNFINISHED}"):
            if other != mine:  # moved first: nothing can be added to it while it is removed
                with suppress(FileNotFoundError):
                    other.replace(mine / other.name)
        shutil.rmtree(mine)
        mine.mkdir()

    def release(self, folder: str, owner: str) -> None:
        """Undo `claim`."""
        if self.local_path is not None:
            shutil.rmtree(_unfinished(self.local_path / folder, owner), ignore_errors=True)

    def exists(self, path: str) -> bool:
        """Return whether the file or folder exists."""
        info = self._filesystem.get_file_info(self._full(path))
        return bool(info.type != fs.FileType.NotFound)

    def size(self, path: str) -> int | None:
        """Return the file's size in bytes; None if it does not exist."""
        info = self._filesystem.get_file_info(self._full(path))
        return info.size if info.type == fs.FileType.File else None

    def read_bytes(self, path: str) -> bytes:
        """Return the whole content.

        Raises:
            FileNotFoundError: names the URI.
        """
        with self.open_input(path, mapped=False) as source:
            return bytes(source.read())

    def open_input(self, path: str, *, mapped: bool = True) -> pa.NativeFile:
        """Open for random access, memory-mapped if `mapped` and local.

        The pages of a mapped file count as this process's memory, so do not map a large file that
        is read once.

        Raises:
            FileNotFoundError: names the URI.
        """
        try:
            if self.is_local:
                return (pa.memory_map if mapped else pa.OSFile)(self._full(path))
            return self._filesystem.open_input_file(self._full(path))
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.uri}: no file {path}") from None

    def names(self, folder: str, suffix: str = "") -> list[str]:
        """Return the sorted names of files in `folder` that end in `suffix`; [] if missing."""
        return sorted(name for name in self.sizes(folder) if name.endswith(suffix))

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders in `folder`; [] if missing."""
        selector = fs.FileSelector(self._full(folder), allow_not_found=True)
        found = self._filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)

    def sizes(self, folder: str = "", *, below: bool = False) -> dict[str, int]:
        """Return path under `folder` -> bytes of its files, by one listing; {} if it is missing.

        With `below`, it includes sub-folders; hidden files and folders are always left out.
        """
        place = self._full(folder)
        selector = fs.FileSelector(place or "/", allow_not_found=True, recursive=below)
        found = {
            info.path[len(place) + 1 :]: info.size
            for info in self._filesystem.get_file_info(selector)
            if info.type == fs.FileType.File
        }
        return {p: n for p, n in found.items() if not any(x[:1] == "." for x in p.split("/"))}

    def delete(self, path: str) -> None:
        """Remove the file, if it exists."""
        with suppress(FileNotFoundError):
            self._filesystem.delete_file(self._full(path))

    def free_bytes(self) -> int | None:
        """Return the free bytes of the folder's disk; None on an object store."""
        if self.local_path is None:
            return None
        existing = next(p for p in (self.local_path, *self.local_path.parents) if p.exists())
        return shutil.disk_usage(existing).free

    def write_atomic(self, path: str, write: bytes | Callable[[pa.NativeFile], None]) -> FileInfo:
        """Write the file whole or not at all, replacing an older one and making its folder.

        `write` is the content, or a function that writes it sequentially to a stream.

        Raises:
            OSError: it could not be written; the older file is untouched (a killed upload may
                have replaced it: the ledger record, not the file, means "done").
        """
        if self.is_local:
            made: list[FileInfo] = []
            target = Path(self._full(path))
            write_file(target, lambda file: made.append(_write_hashed(file, write)), self.owner)
            return made[0]
        with tempfile.TemporaryFile() as spool:
            info = _write_hashed(spool, write)
            spool.seek(0)
            self._upload(path, spool)
        if (stored := self.size(path)) != info.bytes:
            raise OSError(f"{self.uri}: {path} has {stored} bytes after an upload of {info.bytes}")
        return info

    def create(self, path: str, content: bytes) -> bool:
        """Write a new file whole; return False and change nothing if it already exists.

        This is exclusive on a file system. On an object store, where the last of two writers wins,
        the file is read back after `SETTLE_SECONDS`.
        """
        if self.local_path is None:
            if self.exists(path):
                return False
            self.write_atomic(path, content)
            time.sleep(SETTLE_SECONDS)
            return self.read_bytes(path) == content
        target = self.local_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = target.open("xb")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            target.unlink()
            raise
        return True

    def _upload(self, path: str, spool: IO[bytes]) -> None:
        """Upload a file; pyarrow cannot abort an upload, so a truncated one is removed again."""
        sent = 0
        sink = self._filesystem.open_output_stream(self._full(path))
        try:
            while block := spool.read(COPY_BYTES):
                sink.write(block)
                sent += len(block)
        except BaseException:
            with suppress(OSError):
                sink.close()
                if self.size(path) == sent:
                    self.delete(path)
            raise
        sink.close()

    def _full(self, path: str) -> str:
        return f"{self._base}/{path}" if path else self._base


def _unfinished(place: Path, name: str) -> Path:
    return place / f".{name}{UNFINISHED}"


def write_file(
    target: Path, write: bytes | str | Callable[[IO[bytes]], object], owner: str = ""
) -> None:
    """Write a local file whole or not at all, replacing an older one and making its folder.

    `write` is the content, or a function that writes it to a binary file; an `owner` has
    `Storage.claim`ed the folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = _unfinished(target.parent, owner) if owner else target.parent
    temporary = _unfinished(folder, f"{target.name}~{uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            if callable(write):
                write(file)
            else:
                file.write(write.encode(errors="replace") if isinstance(write, str) else write)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file whole or not at all; values that JSON lacks, such as NaN, are strings."""
    plain = json.loads(json.dumps(content, default=str), parse_constant=str)
    write_file(path, json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


class _HashingFile(io.RawIOBase):
    """A write-only binary file that hashes and counts its bytes; `file` stays open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sha256, self._bytes = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sha256.update(data)
        self._bytes += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._bytes

    def info(self) -> FileInfo:
        return FileInfo(self._bytes, self._sha256.hexdigest())


def _write_hashed(file: IO[bytes], write: bytes | Callable[[pa.NativeFile], None]) -> FileInfo:
    hashing = _HashingFile(file)
    if isinstance(write, bytes):
        hashing.write(write)
    else:
        with pa.PythonFile(hashing, mode="w") as sink:
            write(sink)
    return hashing.info()


def _sync_folder(folder: Path) -> None:
    """Flush a rename in the folder to disk, if the file system can."""
    with suppress(OSError):  # some network and FUSE file systems refuse
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
