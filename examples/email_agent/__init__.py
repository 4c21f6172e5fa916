"""An e-mail agent: it reads a mailbox, classifies the mail and drafts answers. It never sends anything.

The orchestrator decides when the agent works. It calls three endpoints, each with a run id, and the agent
answers through the orchestrator's API:

- `poll` reads new mail from an IMAP mailbox, without changing it, and logs it;
- `classify` gives one e-mail a category;
- `respond` writes a draft for one e-mail, for a person to read, edit and send.

`settings` defines the settings, `mailbox` speaks IMAP, `message` parses MIME, `rules` and `drafts` work
without a language model, `llm` calls one if it is set, `squad` is the orchestrator's client, `agent` has
the three jobs, `repeats` makes repeated calls harmless, and `app` is the HTTP service.

    python -m examples.email_agent
"""
