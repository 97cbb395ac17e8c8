"""This node's certificate, read again once it was replaced: a pull may last longer than a certificate does.

Links that are up go on with what they began with, since TLS looks at certificates when a link begins and not again.
"""

import ssl
import threading
from pathlib import Path

from fleet_agent.relay.control import TlsFiles
from fleet_agent.relay.links import client_context, server_context


class NodeCredentials:
    """What a link begins with, by direction. From any thread. Raises OSError at its making where a file is wrong."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._read = self._stamp()
        self._contexts = client_context(files), server_context(files)

    def dialling(self) -> ssl.SSLContext:
        return self._latest()[0]

    def listening(self) -> ssl.SSLContext:
        return self._latest()[1]

    def _latest(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """What cannot be read, since only a part of it is there yet, is looked at again for the next link."""
        with self._lock:
            stamp = self._stamp()
            if stamp not in (None, self._read):
                try:
                    self._contexts = client_context(self._files), server_context(self._files)
                    self._read = stamp
                except OSError:  # ssl.SSLError is one
                    pass
            return self._contexts

    def _stamp(self) -> tuple[int, int] | None:
        """Of the file that is replaced last; None where it is gone."""
        try:
            found = Path(self._files.key or self._files.certificate).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns
