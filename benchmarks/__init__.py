"""The benchmarks: `python -m benchmarks`, or `make bench`.

Only ratios are meaningful: other load on the machine and the latency of cloud disks vary. So a benchmark
measures its *contenders* in turn, in several rounds. Each round gives one ratio to the *baseline*; the
result is the median over the rounds, with the minimum and the maximum.

- `harness` defines a benchmark and does the arithmetic. It does not depend on what is measured.
- `suite` has the benchmarks, one module each; `suite.ALL` lists them in order.
- `stage` provides their parts: an embedded Postgres in a temporary folder, and servers and load generators
  in processes of their own, which end with the benchmark.
- `report` prints the table and writes the JSON to `benchmarks/results/`; `plot` draws the ratios.

Durability is never traded for a figure: the Postgres is the embedded one with its normal settings.
"""
