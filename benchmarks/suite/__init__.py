"""The benchmarks, one module each. To add one: a module with a `BENCHMARK`, and its name here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.suite import appends_in_process, commands_over_http, encrypted_in_process

if TYPE_CHECKING:
    from benchmarks.frame import Benchmark

ALL: tuple[Benchmark, ...] = (
    commands_over_http.BENCHMARK,
    appends_in_process.BENCHMARK,
    *encrypted_in_process.BENCHMARKS,
)
