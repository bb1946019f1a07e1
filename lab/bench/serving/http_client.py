"""A client in a process of its own: asks a server for all requests at once, and prints in how many seconds they were answered.

python http_client.py URL ADAPTER
"""

import asyncio
import json
import sys
import time

from lab.bench.serving.over_http import Server
from lab.bench.serving.workload import CONCURRENT, asks


async def main(url: str, adapter: str) -> None:
    """One round."""
    server = Server(url, None)
    requests = asks(CONCURRENT, [adapter])
    started = time.perf_counter()
    replies = await server.answer(requests)
    seconds = time.perf_counter() - started
    problems = [reply.problem for reply in replies if reply.problem]
    print(json.dumps({"seconds": seconds, "problems": problems}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
