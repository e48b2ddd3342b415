"""The socket of a server."""

import socket

import pytest

from dpt_zoo.errors import InputError
from dpt_zoo.utils.listening import listen, listener_url


def test_connections_send_at_once() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:{}"), ("localhost", "http://127.0.0.1:{}")])
def test_url(host: str, url: str) -> None:
    with listen(host, 0) as listener:
        if listener.family == socket.AF_INET:
            assert listener_url(listener) == url.format(listener.getsockname()[1])


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as listener, pytest.raises(InputError, match="Address already in use"):
        listen("127.0.0.1", listener.getsockname()[1])
