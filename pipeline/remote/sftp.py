"""A folder over SFTP whose server may go away: fsspec's file system with an end to every wait.

In: what fsspec reads from an `sftp://` URL. Out: a file system for one thread. paramiko hands an answer to whichever
thread reads it first, so two threads with one connection wait for each other's answers for ever.
"""

import socket
import threading
from typing import Any

import paramiko
from fsspec.implementations.sftp import SFTPFileSystem

SILENT_SECONDS = 30.0  # without a byte from the server, and it is taken for gone
ALIVE_SECONDS = 15  # between two signs of life over an idle connection, which find a dead one before it is used


class Sftp(SFTPFileSystem):
    """`SFTPFileSystem` that raises `OSError`, `EOFError` or `SSHException` where the server is silent for
    `SILENT_SECONDS`. `closed`: whether its connection has ended; going on needs another object."""

    cachable = False
    ssh_kwargs: dict[str, Any]

    @property
    def closed(self) -> bool:
        return not self._transport.is_active() or self._channel.closed

    def close(self) -> None:
        """Ends the connection without a word to the server, which may not listen."""
        self.client.close()

    def _connect(self) -> None:
        waits = dict.fromkeys(("timeout", "banner_timeout", "auth_timeout", "channel_timeout"), SILENT_SECONDS)
        self.client = paramiko.SSHClient()
        self.client.set_missing_host_key_policy(self.host_key_policy)
        given_up = threading.Event()

        def give_up() -> None:
            given_up.set()  # first: the close below ends the connecting at once, with an error of its own
            self.client.close()

        watch = threading.Timer(SILENT_SECONDS, give_up)  # paramiko has no limit for some of the steps below
        watch.daemon = True
        watch.start()
        try:
            self.client.connect(self.host, **{**waits, **self.ssh_kwargs})
            self.ftp = self.client.open_sftp()
            self._channel: Any = self.ftp.get_channel()
            self._transport: Any = self._channel.get_transport()
            self._channel.settimeout(SILENT_SECONDS)
            self._transport.set_keepalive(ALIVE_SECONDS)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: also ends a write that the server does not take
                milliseconds = int(SILENT_SECONDS * 1000)
                self._transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        except Exception as error:
            self.client.close()
            if given_up.is_set():
                raise TimeoutError(f"no answer within {SILENT_SECONDS:.0f} s") from error
            raise
        finally:
            watch.cancel()
