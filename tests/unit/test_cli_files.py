"""The files that commands write and read: complete or absent, compressed by suffix, refused if damaged."""

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
    def test_file_appears_under_its_name_only_when_it_is_complete(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        with open_output(path) as file:
            file.write(b"whole")
            assert not path.exists()
        assert path.read_bytes() == b"whole"
        assert list(tmp_path.iterdir()) == [path]

    def test_failed_write_leaves_the_existing_file_unchanged(self, tmp_path: Path) -> None:
        path = tmp_path / "log.gz"
        path.write_bytes(b"before")
        with pytest.raises(TypeError), open_output(path) as file:
            file.writelines([b"half", None])  # type: ignore[list-item]
        assert path.read_bytes() == b"before"
        assert list(tmp_path.iterdir()) == [path]

    def test_new_file_has_the_mode_that_the_umask_allows(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            with open_output(tmp_path / "log") as file:
                file.write(b"x")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o640

    def test_target_of_a_symlink_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "real").write_bytes(b"before")
        (tmp_path / "link").symlink_to("real")
        with open_output(tmp_path / "link") as file:
            file.write(b"after")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real").read_bytes() == b"after"

    def test_pipe_is_written_to_and_not_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.append(path.read_bytes()))
        reader.start()
        with open_output(path) as file:
            file.write(b"through")
        reader.join(10)
        assert received == [b"through"]
        assert stat.S_ISFIFO(path.stat().st_mode)

    def test_same_content_is_compressed_to_the_same_bytes(self, tmp_path: Path) -> None:
        for name in ("a.gz", "b.gz"):
            with open_output(tmp_path / name) as file:
                file.write(b"content" * 1000)
        compressed = (tmp_path / "a.gz").read_bytes()
        assert compressed == (tmp_path / "b.gz").read_bytes()
        assert gzip.decompress(compressed) == b"content" * 1000

    @pytest.mark.parametrize(("name", "why"), [("no/where", "No such file"), ("", "Is a directory")])
    def test_path_that_cannot_be_written_is_named(self, tmp_path: Path, name: str, why: str) -> None:
        with pytest.raises(StartFailed, match=f"cannot write .*: {why}"), open_output(tmp_path / name):
            pass


class TestReading:
    async def test_lines_are_read_in_portions(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        content = [b"%d\n" % number for number in range(10_000)] + [b"the last"]
        path.write_bytes(b"".join(content))
        assert await read(path) == content
        portions = [portion async for portion in read_lines(path)]
        assert max(len(portion) for portion in portions) < len(content) / 4

    async def test_compressed_file_is_decompressed(self, tmp_path: Path) -> None:
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
    async def test_truncated_compressed_file_is_refused(
        self, tmp_path: Path, damage: slice, why: str
    ) -> None:
        path = tmp_path / "log.gz"
        compressed = gzip.compress(os.urandom(500))
        path.write_bytes(compressed[damage])
        with pytest.raises(StartFailed, match=f"cannot read .*log.gz: .*{why}"):
            await read(path)

    async def test_corrupted_compressed_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "log.gz"
        compressed = bytearray(gzip.compress(b"abc" * 5_000))
        compressed[len(compressed) // 2] ^= 0xFF
        path.write_bytes(compressed)
        with pytest.raises(StartFailed, match="cannot read"):
            await read(path)

    async def test_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(StartFailed, match=r"cannot read .*nothing: No such file or directory"):
            await read(tmp_path / "nothing")

    async def test_endless_line_is_read_in_bounded_pieces(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files, "MAX_LINE_BYTES", 1_000)
        path = tmp_path / "log"
        path.write_bytes(b"x" * 10_000)
        assert {len(line) for line in (await read(path))[:-1]} == {1_001}
