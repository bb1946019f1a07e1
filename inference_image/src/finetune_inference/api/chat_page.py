"""GET /chat: a page that sends one message to two of the served models and shows both answers as they come.

For people who want to look at an adapter beside its base model. It needs nothing but this server, and it is off unless the
settings say otherwise: a pod has no users of its own, and whoever can open the page can use the API.
"""

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

router = APIRouter()


@router.get("/chat", response_class=HTMLResponse, include_in_schema=False)
async def chat_page() -> HTMLResponse:
    """The page."""
    return HTMLResponse(PAGE, headers=HEADERS)


def _hashes(element: str) -> str:
    """What a content security policy calls the contents of the page's own elements by."""
    contents = re.findall(rf"<{element}>(.*?)</{element}>", PAGE, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


PAGE = files("finetune_inference.api").joinpath("chat_page.html").read_text(encoding="utf-8")
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Nothing runs on the page but what is written in it, and it talks to nobody but this server."""
