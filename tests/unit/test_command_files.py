"""Files of commands: whole or not there, packed by their name, read to the end or refused."""

from __future__ import annotations

import gzip
import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from service.cli import files
from service.cli.files import open_output, read_lines
from service.database import StartFailed

if TYPE_CHECKING:
    from pathlib import Path


async def read(path: Path) -> list[bytes]:
    return [line async for portion in read_lines(path) for line in portion]


class TestWriting:
    def test_a_file_bears_its_name_when_it_is_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        with open_output(path) as file:
            file.write(b"whole")
            assert not path.exists()
        assert path.read_bytes() == b"whole"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_file_that_failed_leaves_what_was_there(self, tmp_path: Path) -> None:
        path = tmp_path / "log.gz"
        path.write_bytes(b"before")
        with pytest.raises(TypeError), open_output(path) as file:
            file.writelines([b"half", None])  # type: ignore[list-item]
        assert path.read_bytes() == b"before"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_file_is_made_as_the_user_wants_files_made(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            with open_output(tmp_path / "log") as file:
                file.write(b"x")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o640

    def test_what_a_link_leads_to_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "real").write_bytes(b"before")
        (tmp_path / "link").symlink_to("real")
        with open_output(tmp_path / "link") as file:
            file.write(b"after")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real").read_bytes() == b"after"

    def test_a_pipe_stays_a_pipe(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
        reader.start()
        with open_output(path) as file:
            file.write(b"through")
        reader.join(10)
        assert got == [b"through"]
        assert stat.S_ISFIFO(path.stat().st_mode)

    def test_the_same_content_is_packed_the_same(self, tmp_path: Path) -> None:
        for name in ("a.gz", "b.gz"):
            with open_output(tmp_path / name) as file:
                file.write(b"content" * 1000)
        packed = (tmp_path / "a.gz").read_bytes()
        assert packed == (tmp_path / "b.gz").read_bytes()
        assert gzip.decompress(packed) == b"content" * 1000

    @pytest.mark.parametrize(("name", "why"), [("no/where", "No such file"), ("", "Is a directory")])
    def test_a_place_that_cannot_be_written_is_named(self, tmp_path: Path, name: str, why: str) -> None:
        with pytest.raises(StartFailed, match=f"cannot write .*: {why}"), open_output(tmp_path / name):
            pass


class TestReading:
    async def test_all_lines_come_in_portions(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        content = [b"%d\n" % number for number in range(10_000)] + [b"the last"]
        path.write_bytes(b"".join(content))
        assert await read(path) == content
        portions = [portion async for portion in read_lines(path)]
        assert max(len(portion) for portion in portions) < len(content) / 4

    async def test_a_packed_file_is_unpacked(self, tmp_path: Path) -> None:
        path = tmp_path / "log.gz"
        path.write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))
        assert await read(path) == [b"one\n", b"two\n"]

    @pytest.mark.parametrize(
        ("damage", "why"),
        [
            (slice(0, -9), "end-of-stream"),
            (slice(5, None), "Not a gzipped file"),
            (slice(0, 40), "end-of-stream"),
        ],
    )
    async def test_a_packed_file_that_is_damaged_is_refused(
        self, tmp_path: Path, damage: slice, why: str
    ) -> None:
        path = tmp_path / "log.gz"
        packed = gzip.compress(os.urandom(500))
        path.write_bytes(packed[damage])
        with pytest.raises(StartFailed, match=f"cannot read .*log.gz: .*{why}"):
            await read(path)

    async def test_a_packed_file_with_wrong_bytes_in_it_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "log.gz"
        packed = bytearray(gzip.compress(b"abc" * 5_000))
        packed[len(packed) // 2] ^= 0xFF
        path.write_bytes(packed)
        with pytest.raises(StartFailed, match="cannot read"):
            await read(path)

    async def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(StartFailed, match=r"cannot read .*nothing: No such file or directory"):
            await read(tmp_path / "nothing")

    async def test_a_line_without_an_end_does_not_fill_the_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files, "MAX_LINE_BYTES", 1_000)
        path = tmp_path / "log"
        path.write_bytes(b"x" * 10_000)
        assert {len(line) for line in (await read(path))[:-1]} == {1_001}
