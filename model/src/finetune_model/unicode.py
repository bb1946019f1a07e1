"""Check of texts that no tokenizer can encode."""


def has_unpaired_surrogate(text: str) -> bool:
    """Return whether a text holds half of a UTF-16 surrogate pair, which JSON can express but no tokenizer can encode."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
