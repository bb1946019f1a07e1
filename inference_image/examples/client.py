"""The official `openai` client with this server: a streamed chat, and an answer as a JSON document.

pip install openai
python inference_image/examples/client.py http://localhost:8000/v1 support-tickets "The app crashes on the map."
"""

import sys
from typing import Literal

import openai
from pydantic import BaseModel


class Ticket(BaseModel):
    """Schema of the answer; the server generates only tokens that match it."""

    team: Literal["billing", "app", "account"]
    urgent: bool


def main(url: str, model: str, message: str) -> None:
    """Send the message twice: for a stream, and for a document."""
    client = openai.OpenAI(base_url=url, api_key="none")

    chunks = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": message}], max_completion_tokens=64, stream=True
    )
    for chunk in chunks:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    answer = client.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": message}], response_format=Ticket, temperature=0
    )
    print(answer.choices[0].message.parsed)


if __name__ == "__main__":
    main(*sys.argv[1:4])
