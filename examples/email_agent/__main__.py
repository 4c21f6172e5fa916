"""Run the agent: `python -m examples.email_agent`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from aiohttp import web

from examples.email_agent.app import application
from examples.email_agent.settings import Settings, SettingsError, is_loopback, read


def main() -> int:
    """Run until SIGINT or SIGTERM. An error is printed in one line, with a non-zero exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")
    try:
        settings = read()
        asyncio.run(_serve(settings))
    except SettingsError as error:
        for line in str(error).splitlines():
            print(f"email_agent: {line}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"email_agent: cannot listen: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(application(settings), access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
        host, port = runner.addresses[0][:2]
        print(
            f"email_agent is listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True
        )
        if settings.webhook_secret is None and not is_loopback(settings.host):
            logging.warning(
                "anyone who can reach %s can call the agent: set a webhook secret", settings.host
            )
        await stop.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
