"""What all servers have in common: an address, a key, and words of their own when they refuse."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from nullrec_lib.errors import InputError

KEYS = ("NULLREC_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key; the first that is set counts. It is read there and stored nowhere."""
NO_KEY = "no-key-needed"
"""What is sent without one: local servers want none, the client wants something."""


def address(url: str, name: str = "url") -> str:
    """A server's base address without a slash at its end, with `/v1` where no path is given.

    Args:
        name: of the setting that it was given as, for errors.

    Raises:
        InputError: it is no such address, or a name, a password or a query is in it; it is not shown, for their sake.
    """
    try:
        parts = urlsplit(url.strip())
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        raise InputError(f"{name}: its host or port cannot be read; give one like http://127.0.0.1:8000/v1.") from None
    if "@" in parts.netloc:
        raise InputError(f"{name}: a name or password is in it; leave them out and set {KEYS[0]} in the environment.")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{name}: it is no address of a server; give one like http://127.0.0.1:8000/v1.")
    if parts.query or parts.fragment:
        raise InputError(f"{name}: something follows a ? or # in it; leave that out.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{host}{port}{path or '/v1'}"


def api_key() -> str:
    """The key in the environment, or `NO_KEY`.

    Raises:
        InputError: it cannot be one.
    """
    for name in KEYS:
        if key := os.environ.get(name, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise InputError(f"{name}: no key has a line break or letters beyond ASCII in it; set it again.")
            return key
    return NO_KEY


def own_words(error, key: str) -> str:
    """What the server itself said, in one line and without the key."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message", body.get("detail", body))
    return " ".join(str(body or "").replace(key, "…").split())
