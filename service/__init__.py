"""What the squad may do: commands, decisions, the writer that makes them durable, and the interfaces.

`commands` are what can be asked for; `decide` decides them, purely, on the state that `memory` holds;
`writing` turns a batch of decisions into events; `http` and `cli` are the interfaces; `app` connects them.
"""
