"""Properties of URLs, and the form in which they are shown and stored. Imports no network library."""

import ipaddress
import re
from urllib.parse import urlsplit


def is_loopback(host: str | None) -> bool:
    """Return whether a host of a URL is this machine: `localhost` or a loopback address, IPv6 without brackets."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def is_secure(url: str) -> bool:
    """Return whether the content of a URL cannot be changed on its way to this machine: HTTPS, or loopback."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if parts.scheme == "http":  # urllib3 ends the host name at a backslash
        return is_loopback(host) and "\\" not in url
    return parts.scheme == "https" and host is not None


def redact(url: str) -> str:
    """Return a URL for messages and files: `...` replaces user and password, and the query. A path stays as it is."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    address, *hidden = re.split(r"[?#]", rest, maxsplit=1)
    host, slash, path = address.partition("/")
    host = re.sub(".*@", "...@", host)
    return f"{scheme}://{host}{slash}{path}{'?...' if hidden else ''}"


def redact_all(text: str) -> str:
    """Redact each URL in a text, such as an error of a library."""
    return re.sub(r"\w+://[^\s'\"<>]+", lambda found: redact(found[0]), text)
