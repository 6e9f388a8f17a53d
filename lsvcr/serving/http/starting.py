"""What comes before a server: its settings are looked at, its token is read, its address is taken.

Nothing here loads what answers: where several processes serve, the one above them needs this and little else.
"""

import errno
import ipaddress
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lsvcr.settings import ServeSettings
from lsvcr.utils.errors import UserError

TOKEN_VARIABLE = "LSVCR_ADMIN_TOKEN"
NUMBERS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder where processes that serve together keep their numbers; prometheus_client reads it."""
BACKLOG = 4096
"""Connections that wait for the server to take them."""


@contextmanager
def hangups_wait() -> Iterator[None]:
    """Have SIGHUP, which would end this process, wait until `hear_hangups`; one that waits at the end is dropped.

    Begin before what starts threads is imported: one with its own mask would take the signal. Those that start within
    never take it, which leaves it to the main thread.
    """
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        if signal.SIGHUP in signal.sigpending():
            signal.sigwait({signal.SIGHUP})
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def hear_hangups() -> None:
    """Let SIGHUP come, also one that waits. Call it in the main thread, once there is a handler."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def check(settings: ServeSettings) -> None:
    """Look at the settings that have a least value, and at the names of hosts.

    Raises:
        UserError: one of them is below it, or is no name.
    """
    for name in (
        "processes", "threads", "workers", "batch_size", "queue", "max_connections", "max_body_bytes", "max_history",
        "max_k", "max_batch", "max_candidates",
    ):  # fmt: skip
        if getattr(settings, name) < 1:
            raise UserError(f"--{name} is at least 1")
    for name in ("request_timeout", "client_timeout", "keep_alive", "graceful_timeout"):
        if getattr(settings, name) <= 0:
            raise UserError(f"--{name} is more than 0 seconds")
    if settings.batch_wait_ms < 0:
        raise UserError("--batch_wait_ms is at least 0")
    for name in _listed(settings.allowed_hosts):
        if "/" in name or " " in name:
            raise UserError(
                f"--allowed_hosts has names such as recommend.example.com, with commas between them, not {name!r}"
            )


def allowed_hosts(settings: ServeSettings) -> frozenset[bytes] | None:
    """What a request's `Host` may name, as `host_name` has it; None = anything.

    A website can give a name of its own this machine's loopback address (DNS rebinding). A browser then takes the
    server for the website, and lets its scripts read every answer; but the requests name the website.

    Raises:
        UserError: no such address.
    """
    given = _listed(settings.allowed_hosts)
    address = ipaddress.ip_address(_address_of(settings.host, settings.port)[4][0])
    if not given and not address.is_loopback:
        return None
    own = f"[{settings.host}]" if ":" in settings.host else settings.host
    return frozenset(host_name(name.encode()) for name in ("localhost", "127.0.0.1", "[::1]", own, *given))


def host_name(host: bytes) -> bytes:
    """The name in a header `Host`, in lower case and without the port."""
    end = host.find(b"]") + 1 if host.startswith(b"[") else host.find(b":")
    return (host[:end] if end > 0 else host).lower()


def read_token(settings: ServeSettings) -> str | None:
    """The admin token, from the file or the environment; None = no admin routes.

    Raises:
        UserError: the file cannot be read, or holds no token or something that is none.
    """
    where = settings.admin_token_file or f"the variable {TOKEN_VARIABLE}"
    if settings.admin_token_file:
        try:
            token = Path(settings.admin_token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"the token file {where} cannot be read: {reason}") from None
    else:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            return None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(f"{where} holds no token: write one line of letters and digits without spaces")
    return token


def bind(host: str, port: int, shared: bool = False) -> socket.socket:
    """A socket bound to the address; `shared` lets others be bound there too.

    Raises:
        UserError: no such address, or the port is taken.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port is a number from 0 to 65535, not {port}")
    family, kind, protocol, _, address = _address_of(host, port)
    try:
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            _share(listener)
        listener.bind(address)
    except OSError as error:
        remedy = "choose another --port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "mend --host"
        raise UserError(f"cannot listen on {host} port {port}: {error.strerror or error}; {remedy}") from None
    return listener


def reserve(host: str, port: int) -> socket.socket:
    """A socket bound to an address that only `beside` it others are bound to; it never listens.

    Raises:
        UserError: no such address, the port is taken, or the system cannot share one.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise UserError("this system does not let processes share a port; use --processes 1")
    if port:
        bind(host, port).close()  # a socket that shares would also share with those of another server
    return bind(host, port, shared=True)


def beside(reserved: socket.socket) -> socket.socket:
    """Another socket at the same address. The kernel spreads connections over those that listen, by chance.

    Raises:
        OSError: no socket can be made.
    """
    listener = socket.socket(reserved.family, reserved.type, reserved.proto)
    try:
        _share(listener)
        listener.bind(reserved.getsockname())
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a bound socket is reached."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/"


def _listed(names: str) -> list[str]:
    return [name for each in names.split(",") if (name := each.strip())]


def _address_of(host: str, port: int) -> tuple[Any, ...]:
    """As `socket.getaddrinfo` has it.

    Raises:
        UserError: no such address.
    """
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise UserError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; mend --host"
        ) from None


def _share(listener: socket.socket) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
