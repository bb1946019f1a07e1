"""`python -m finetune_gateway`: serve HTTP until SIGTERM. TLS is left to the ingress or the mesh."""

import uvicorn

from finetune_gateway.access import configure_logging
from finetune_gateway.app import create_app
from finetune_gateway.settings import Settings

SHUTDOWN_SECONDS = 10
"""Seconds for running requests after SIGTERM: as long as one request to the API server may take."""


def main() -> None:
    """Run the gateway."""
    settings = Settings()
    configure_logging(settings.log_level)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        # The loggers are configured already, and `access` writes one line for each request.
        log_config=None,
        access_log=False,
        server_header=False,
        # Proxy headers are unverified claims about the client's address, and nothing here needs it.
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


if __name__ == "__main__":
    main()
