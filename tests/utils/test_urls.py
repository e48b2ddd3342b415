"""What is secure, what is this machine, and how URLs are shown."""

import pytest

from dpt_zoo.utils.urls import is_loopback, is_secure, redact, redact_all


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.org/a b.png", "https://example.org/a b.png"),
        ("https://user:pass@example.org:8080/a.png", "https://...@example.org:8080/a.png"),
        ("https://token@example.org", "https://...@example.org"),
        ("https://a@b@example.org/", "https://...@example.org/"),
        ("https://example.org/a?sig=1&x=2#y", "https://example.org/a?..."),
        ("https://example.org?sig=1", "https://example.org?..."),
        ("https://example.org#token", "https://example.org?..."),
        ("https://example.org/a@b/c", "https://example.org/a@b/c"),
        ("HTTPS://u:p@[::1]/", "HTTPS://...@[::1]/"),
        ("hf://org/repo@revision/file.pth", "hf://org/repo@revision/file.pth"),
        ("photos/what?.png", "photos/what?.png"),
        ("", ""),
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert redact(url) == shown
    assert redact(shown.partition("?...")[0]) == shown.partition("?...")[0]


def test_redact_all() -> None:
    text = "403 for 'https://u:p@x.org/a?sig=1', see http://y.org/?t=2 and <https://z.org/?k=3>"
    assert redact_all(text) == "403 for 'https://...@x.org/a?...', see http://y.org/?... and <https://z.org/?...>"


@pytest.mark.parametrize(
    "url", ["https://x", "http://localhost/a", "http://127.0.0.1:80", "http://127.9.9.9", "http://[::1]:1/"]
)
def test_secure(url: str) -> None:
    assert is_secure(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://x",
        "http://x\\@127.0.0.1",
        "http://127.0.0.1@x",
        "https://",
        "https://[",
        "ftp://localhost",
        "http://127.1",
    ],
)
def test_not_secure(url: str) -> None:
    assert not is_secure(url)


def test_loopback() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.0.0.2", "::1"]))
    assert not any(map(is_loopback, [None, "", "localhost.evil.org", "0.0.0.0", "128.0.0.1", "::2"]))
