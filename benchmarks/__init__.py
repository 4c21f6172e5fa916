"""The benchmarks: `python -m benchmarks`, or `make bench`.

Only ratios mean something: a machine is busy, a cloud's disk has moods. So a benchmark measures its
*contenders* side by side, in rounds that take turns, and each round gives one ratio to the *baseline*; what
is told is the median over the rounds, with the smallest and the largest beside it.

- `frame` is what a benchmark is, and the arithmetic. It knows nothing of what is measured.
- `suite` has the benchmarks, one module each; `suite.ALL` names them in order.
- `stage` has what they are made of: an embedded Postgres in a temporary folder, servers and load
  generators as processes of their own, which end with the benchmark.
- `report` shows the table and writes the JSON into `benchmarks/results/`; `plot` draws the ratios.

Durability is never traded for a figure: the Postgres is the embedded one with its settings as they are.
"""
