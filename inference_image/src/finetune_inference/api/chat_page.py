"""GET /chat: a page that sends one message to two of the served models and streams both answers.

It compares an adapter with its base model, and needs nothing but this server. The page is off by default, because everyone
who can open it can use the API.
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
    """Return the chat page."""
    return HTMLResponse(PAGE, headers=HEADERS)


def _hashes(element: str) -> str:
    """Return the sources that allow the page's own elements in a content security policy."""
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
"""Headers that allow only the page's own scripts and styles, and requests to this server alone."""
