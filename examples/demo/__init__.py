"""The demo: a squad, a mailbox and the e-mail agent, for as long as one likes to watch.

    python -m examples.demo

`letters` is the mail of a small audio shop, `post_office` an IMAP server that it comes to, `processes` starts
and ends what runs, `narrator` tells what happens, `__main__` puts it together.
"""
