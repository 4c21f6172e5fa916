"""The demo: a squad, a mailbox and the e-mail agent, until you stop it.

    python -m examples.demo

`letters` is the mail of a small audio shop, `imap_server` a server for it, `processes` starts and stops
processes, `environment` sets everything up, `narrator` reports what happens, `__main__` is the command.
"""
