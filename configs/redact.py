"""Credentials in URLs, taken out of what is printed or published."""

import re
from urllib.parse import unquote

# A password may hold a @ that was not escaped: the last one before the path counts.
_PASSWORD = re.compile(r"(://[^/\s:@'\"]*):([^/\s'\"]+)@")
_TOKEN = re.compile(r"(https?://)[^/\s:@'\"]+@")
# Of a signed URL the whole query: what it is called differs from store to store.
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*[^\s'\":,;)]")


def redact(text: str) -> str:
    """`https://me:word@host/a.txt?signature=1` -> `https://me:***@host/a.txt?***`."""
    text = _PASSWORD.sub(r"\1:***@", text)
    return _QUERY.sub(r"\1?***", _TOKEN.sub(r"\1***@", text))


def redact_of(url: str, text: str) -> str:
    """A text about a URL without the URL's password, which it may show in other places."""
    for _, password in _PASSWORD.findall(url):
        for shown in (password, unquote(password)):
            text = text.replace(shown, "***")
    return redact(text)
