"""The journal of a catalogue that moves: every change on disk before the call that made it returns.

A state folder holds two files:

    lock            held by the one process that uses the folder
    journal.jsonl   a header line, then a line a change

A line is `CRC AFTER JSON`: the CRC-32 of what follows it (8 hex digits), the length in bytes that the file was known
to have on disk when the line was written, and the record, a JSON object with `kind` and `id`. The last line of a kind
and id says everything about it; earlier ones are superseded, and compaction leaves them out.

What a crash can leave is told from damage. Lines are written in batches with one fsync each, and a crash can leave
any part of the last batch out: the file then ends early or has zeros in place of bytes. Nobody was told that this
batch is stored, so it is cut off from its first broken line. Any other broken line was acknowledged once, and opening
the journal fails with its number.
"""

import errno
import json
import logging
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from lsvcr.serving.state_folder import LOCK_FILE, check_there, locked, sync_folder
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_file

JOURNAL_FILE = "journal.jsonl"
JOURNAL_KIND = "journal"
JOURNAL_FORMAT = 1

Key = tuple[str, str]
"""Kind and id of a record. The id as text, so that 5 and "5" are one."""
Record = dict[str, Any]

_FEWEST_TO_COMPACT = 64
"""A journal of fewer lines than this is not worth rewriting; assumption."""

_GONE = (
    "the file or its lock has been removed or replaced while in use; put the state folder back as it was, or start "
    "again to go on with what is there"
)

_logger = logging.getLogger(__name__)


class NotStored(UserError):
    """A change could not be written to disk. It is refused and nothing of it remains; later ones may succeed."""


def key_of(record: Record) -> Key:
    """Kind and id of a record."""
    return record["kind"], str(record["id"])


@dataclass(frozen=True)
class _Place:
    """Where a line stands in the file, its newline included."""

    offset: int
    length: int


class Journal:
    """The changes of one state folder. `append` and `compact` need a caller that makes them one at a time.

    Attributes:
        path: the file. state: id of this journal, made once with the folder and kept by compaction.
        lines: changes in the file, superseded ones included. size: bytes of the file.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open or begin the journal of a folder and check every line; what a crash left half written is cut off.

        Raises:
            UserError: another process uses the folder, it cannot be written to, or a line that was acknowledged once
                is damaged.
        """
        root = Path(folder)
        self.path = root / JOURNAL_FILE
        self.lines = 0
        self.size = 0
        self.state = ""
        self._last: dict[Key, _Place] = {}
        self._tail_is_clean = True
        self._name_is_durable = True
        self._tried_at = 0
        self._file = -1
        self._lock = locked(root)
        try:
            if not self.path.exists():
                self._begin()
            self._file = os.open(self.path, os.O_RDWR)
            self._replay()
        except OSError as error:
            self.close()
            raise UserError(
                f"{self.path} cannot be used: {error.strerror}; mend it or choose another state"
            ) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process have the folder. Everything acknowledged is on disk already."""
        for handle in (self._file, self._lock):
            if handle >= 0:
                os.close(handle)
        self._file = self._lock = -1

    @property
    def live(self) -> int:
        """Lines that count: one for each kind and id."""
        return len(self._last)

    def append(self, records: Sequence[Record]) -> None:
        """Write records, all or none, and return when they are on disk: one write and one fsync for all of them.

        Args:
            records: JSON objects with `kind` and `id`, oldest first.

        Raises:
            NotStored: disk full, a failing disk, a closed journal, or a folder that has been removed or replaced. The
                file is as it was; if it cannot even be cut back now, the next call does so before it writes.
        """
        lines: list[bytes] = []
        places: list[tuple[Key, _Place]] = []
        end = self.size
        for record in records:
            line = _line(record, after=self.size)
            lines.append(line)
            places.append((key_of(record), _Place(end, len(line))))
            end += len(line)
        try:
            self._make_ready()
            self._tail_is_clean = False
            _write_all(self._file, b"".join(lines), self.size)
            os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):
                self._cut_back()
            raise NotStored(f"the change is not stored: {self.path}: {_reason(error)}") from error
        self._tail_is_clean = True
        self.size = end
        self.lines += len(lines)
        for key, place in places:
            self._note(key, place)

    def get(self, kind: str, raw_id: int | str) -> Record | None:
        """What the last line of an id says; None without one.

        Raises:
            NotStored: the file cannot be read any more, so nothing can be built on what it says.
        """
        place = self._last.get((kind, str(raw_id)))
        return None if place is None else self._record_at(place)

    def records(self) -> Iterator[Record]:
        """The last record of each kind and id, in the order of their lines. Do not change the journal meanwhile."""
        for place in self._last.values():
            yield self._record_at(place)

    def forget(self, keys: Iterable[Key]) -> None:
        """Count the lines of these keys as superseded; the next compaction leaves them out."""
        for key in keys:
            self._last.pop(key, None)

    def compact_if_long(self) -> bool:
        """Rewrite the file when more than half of its lines are superseded; True when that was done.

        A rewrite that fails is logged and tried again when the file is a quarter longer: the journal as it is stays
        good.
        """
        if self.lines < max(_FEWEST_TO_COMPACT, 2 * self.live + 1, self._tried_at):
            return False
        try:
            self.compact()
        except (OSError, UserError) as error:
            self._tried_at = self.lines + self.lines // 4
            _logger.warning("%s could not be compacted, it stays as it is: %s", self.path, error)
            return False
        return True

    def compact(self) -> None:
        """Rewrite the file with the last line of each kind and id only, whole or not at all.

        Raises:
            UserError, OSError: it could not be written; the journal is as it was.
        """
        self._make_ready()
        places: dict[Key, _Place] = {}
        with atomic_file(self.path) as temporary:
            file = os.open(temporary, os.O_RDWR)
            try:
                size = self._copy_to(file, places)
                os.fsync(file)
            except BaseException:
                os.close(file)
                raise
        old, self._file = self._file, file
        self.size, self._last, self.lines, self._tried_at = size, places, len(places), 0
        # After a power cut the name may stand for the old file again, which is as good until something is added.
        self._name_is_durable = False
        with suppress(OSError):
            os.close(old)

    def _copy_to(self, file: int, places: dict[Key, _Place]) -> int:
        """Write header and last lines to an empty file, noting where they stand; its size."""
        with os.fdopen(os.dup(file), "wb") as stream:
            end = stream.write(_line(_header(self.state), after=0))
            for key, place in self._last.items():
                # Complete before anyone is told, so each line may claim all bytes in front of it.
                line = _line(self._record_at(place), after=end)
                places[key] = _Place(end, stream.write(line))
                end += len(line)
        return end

    def _begin(self) -> None:
        with atomic_file(self.path) as temporary, open(temporary, "wb") as stream:
            stream.write(_line(_header(secrets.token_hex(8)), after=0))
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(self.path)

    def _make_ready(self) -> None:
        """What an earlier failure left undone comes first; raises OSError if it still cannot be done."""
        if self._file < 0:
            raise OSError(errno.EBADF, "the journal is closed")
        check_there(self._lock, self.path.with_name(LOCK_FILE))  # without it another process may write here
        check_there(self._file, self.path)
        if not self._name_is_durable:
            sync_folder(self.path)
            self._name_is_durable = True
        if not self._tail_is_clean:
            self._cut_back()

    def _cut_back(self) -> None:
        if self._file >= 0 and not self._tail_is_clean:
            os.ftruncate(self._file, self.size)
            os.fsync(self._file)
            self._tail_is_clean = True

    def _note(self, key: Key, place: _Place) -> None:
        self._last.pop(key, None)  # so that the order is that of the lines
        self._last[key] = place

    def _record_at(self, place: _Place) -> Record:
        try:
            if self._file < 0:
                raise OSError(errno.EBADF, "the journal is closed")
            return _parse(os.pread(self._file, place.length, place.offset))[1]
        except OSError as error:
            raise NotStored(f"{self.path} cannot be read: {_reason(error)}") from error
        except ValueError:
            raise NotStored(
                f"{self.path} has been damaged at byte {place.offset} since it was opened"
            ) from None

    def _replay(self) -> None:
        """Check every line and note the last of each key; cut off what the last batch left half written."""
        broken: _Broken | None = None
        with os.fdopen(os.dup(self._file), "rb") as stream:
            self._read_header(stream)
            offset = stream.tell()
            for number, line in enumerate(stream, start=2):
                try:
                    after, record = _parse(line)
                    key = key_of(record)
                except (ValueError, KeyError, TypeError):
                    broken = broken or _Broken(number, offset)
                    if line.endswith(b"\n") and b"\0" not in line:
                        raise self._damaged(broken.line) from None
                else:
                    if broken and after > broken.offset:  # written when the broken line was on disk
                        raise self._damaged(broken.line)
                    if not broken:
                        self._note(key, _Place(offset, len(line)))
                        self.lines += 1
                offset += len(line)
        self.size = broken.offset if broken else offset
        if broken:
            _logger.warning(
                "%s ended in a change that was never acknowledged; cut off at line %d", self.path, broken.line
            )
            self._tail_is_clean = False
            self._cut_back()

    def _read_header(self, stream: BinaryIO) -> None:
        remedy = "restore the file from a copy, or move the folder away to begin without its changes"
        try:
            header = _parse(stream.readline())[1]
        except ValueError:
            raise UserError(f"{self.path}, line 1: not the header of a journal; {remedy}") from None
        if header.get("kind") != JOURNAL_KIND or not isinstance(header.get("id"), str):
            raise UserError(f"{self.path}, line 1: not the header of a journal; {remedy}")
        if header.get("format") != JOURNAL_FORMAT:
            raise UserError(
                f"{self.path} has format {header.get('format')}, this release reads {JOURNAL_FORMAT}; "
                "use the release that wrote it, or another state folder"
            )
        self.state = header["id"]

    def _damaged(self, line: int) -> UserError:
        return UserError(
            f"{self.path}, line {line}: damaged (its checksum does not fit); restore the file from a copy, or delete "
            "this line to go on without its change"
        )


@dataclass(frozen=True)
class _Broken:
    """The first broken line."""

    line: int
    offset: int


def _line(record: Record, after: int) -> bytes:
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    body = b"%d %s" % (after, text.encode("utf-8"))
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _parse(line: bytes) -> tuple[int, Record]:
    """How long the file was when the line was written, and its record; ValueError for anything but a whole line."""
    if len(line) < 12 or not line.endswith(b"\n") or line[8:9] != b" ":
        raise ValueError("not a line of a journal")
    body = line[9:-1]
    if int(line[:8], 16) != zlib.crc32(body):
        raise ValueError("checksum")
    after, _, text = body.partition(b" ")
    record = json.loads(str(text, "utf-8"))
    if not isinstance(record, dict):
        raise ValueError("not an object")
    return int(after), record


def _header(state: str) -> Record:
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"kind": JOURNAL_KIND, "id": state, "format": JOURNAL_FORMAT, "written": created}


def _write_all(file: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _reason(error: OSError) -> str:
    remedies: dict[int | None, str] = {
        errno.ENOSPC: "no space left; free some and send it again",
        errno.EDQUOT: "the quota is used up; free some space and send it again",
        errno.EFBIG: "the file may not grow further; raise the limit and send it again",
        errno.EBADF: "the journal is closed",
        **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), _GONE),
    }
    return remedies.get(error.errno, f"{error.strerror}; check the disk and send it again")


class Memory:
    """The records of a catalogue without a state folder: as `Journal`, but they end with the process."""

    size = 0

    def __init__(self) -> None:
        self.lines = 0
        self._last: dict[Key, Record] = {}

    @property
    def live(self) -> int:
        """Records that count."""
        return len(self._last)

    def append(self, records: Sequence[Record]) -> None:
        """Keep records, oldest first."""
        for record in records:
            self._last.pop(key_of(record), None)
            self._last[key_of(record)] = record
        self.lines += len(records)

    def get(self, kind: str, raw_id: int | str) -> Record | None:
        """What the last record of an id says; None without one."""
        return self._last.get((kind, str(raw_id)))

    def records(self) -> Iterator[Record]:
        """The last record of each kind and id, in the order they came."""
        return iter(self._last.values())

    def compact_if_long(self) -> bool:
        """Nothing superseded is kept."""
        return False

    def close(self) -> None:
        """Nothing is open."""
