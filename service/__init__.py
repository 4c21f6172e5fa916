"""What the squad may do: commands, decisions, the writer that makes them durable, and the doors to it all.

`commands` are what can be asked; `decide` judges them, purely, on the state that `squad` holds; `writer`
turns a batch of judgements into events; `http` and `cli` are the doors; `app` puts everything together.
"""
