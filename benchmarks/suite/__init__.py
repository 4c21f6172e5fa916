"""The benchmarks, one module per subject. To add one, write a module with a `BENCHMARK`; list it here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.suite import (
    appends_in_process,
    batches_over_http,
    bulk_import,
    commands_over_http,
    encrypted_in_process,
    processes_over_http,
    reads_over_http,
    streams_over_http,
    visibility,
    whole_log,
)

if TYPE_CHECKING:
    from benchmarks.harness import Benchmark

ALL: tuple[Benchmark, ...] = (
    appends_in_process.BENCHMARK,
    *encrypted_in_process.BENCHMARKS,
    *commands_over_http.BENCHMARKS,
    batches_over_http.BENCHMARK,
    *reads_over_http.BENCHMARKS,
    visibility.BENCHMARK,
    processes_over_http.BENCHMARK,
    streams_over_http.BENCHMARK,
    bulk_import.BENCHMARK,
    whole_log.BENCHMARK,
)
