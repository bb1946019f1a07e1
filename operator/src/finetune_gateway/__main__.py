"""`python -m finetune_gateway`: serve HTTP until SIGTERM. TLS is the ingress's or the mesh's."""

import uvicorn

from finetune_gateway.access import configure_logging
from finetune_gateway.app import create_app
from finetune_gateway.settings import Settings

SHUTDOWN_SECONDS = 10
"""Time for running requests after SIGTERM: as long as one request to the API server may take."""


def main() -> None:
    """Entry point."""
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
        # The client's address as the proxy tells it would be a claim, and nothing here depends on it.
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


if __name__ == "__main__":
    main()
