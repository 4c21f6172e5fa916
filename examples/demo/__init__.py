"""The demo: a squad, a mailbox and the e-mail agent, for as long as one likes to watch.

    python -m examples.demo

`letters` is the mail of a small audio shop, `post_office` an IMAP server for it, `processes` starts and
ends what runs, `setting` sets all of it up, `narrator` tells what happens, `__main__` is the command.
"""
