"""An e-mail agent: it reads a mailbox, sorts what it finds, and drafts answers. It never sends anything.

The orchestrator decides when it works. It calls three endpoints, each with a run id, and the agent talks
back through the orchestrator's API:

- `poll` reads what is new in an IMAP mailbox, without touching it, and logs it as e-mails;
- `classify` gives one e-mail a category;
- `respond` writes a draft for one e-mail, for a person to read, change and send.

`settings` says what can be set, `mailbox` speaks IMAP, `message` makes sense of MIME, `rules` and `drafts`
do without a language model, `llm` asks one where it is set, `squad` talks to the orchestrator, `agent` is
the three jobs themselves, `repeats` makes a repeated call harmless, and `app` is the HTTP service around.

    python -m examples.email_agent
"""
