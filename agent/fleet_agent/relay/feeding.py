"""Piece hashes from the head, straight and not through the chain: only the head may add to the manifest."""

import ssl
import threading
from collections.abc import Callable

from fleet_agent.jobs.errors import Stopped
from fleet_agent.relay.control import Event, Peer, PeerLost, RelaySpec
from fleet_agent.relay.frames import Frame, Kind, ProtocolError
from fleet_agent.relay.links import Link, LinkLost, dial
from fleet_agent.relay.receiving import RETRY_SECONDS, Retargeted, Target, greet
from fleet_agent.relay.store import Disordered, PieceStore


class HashFeed:
    """The thread that holds a link to the head for as long as hashes are missing."""

    def __init__(
        self,
        spec: RelaySpec,
        store: PieceStore,
        context: Callable[[], ssl.SSLContext | None],
        emit: Callable[[Event], None],
    ) -> None:
        self._spec = spec
        self._store = store
        self._context = context
        self._emit = emit
        self._again = False
        self.target = Target()
        self._thread = threading.Thread(target=self._run, name="hashes", daemon=True)

    def start(self, head: Peer | None) -> None:
        self.target.change(head)
        self._thread.start()

    def stop(self) -> None:
        self.target.stop()
        self._thread.join()

    def again(self) -> None:
        """Known hashes were thrown away: the head is asked for them once more."""
        self._again = True

    def _run(self) -> None:
        while not self.target.stopped:
            peer = self.target.peer
            if peer is None or self._all_known():
                self.target.pause(peer, RETRY_SECONDS)
            else:
                self.target.pause(peer, self._session(peer))

    def _all_known(self) -> bool:
        return all(file.whole or file.known == file.pieces for file in self._store.files)

    def _session(self, peer: Peer) -> float:
        link: Link | None = None
        self._again = False
        try:
            link = dial(peer, self._context())
            greet(link, self._spec, "hashes", lambda: self.target.check(peer))
            known = [Frame(Kind.KNOWN, f.number, f.pieces if f.whole else f.known) for f in self._store.files]
            link.send(b"".join(frame.pack() for frame in known))
            self._follow(link, peer)
            return 0.0
        except (Retargeted, Stopped, Disordered):
            return 0.0
        except LinkLost as lost:
            self._emit(PeerLost(peer.name, "hashes", lost.reason, lost.detail))
        except ProtocolError as error:
            self._emit(PeerLost(peer.name, "hashes", "protocol", str(error)))
        finally:
            if link is not None:
                link.close()
        return RETRY_SECONDS

    def _follow(self, link: Link, peer: Peer) -> None:
        """Returns once all hashes are known."""

        def check() -> None:
            self.target.check(peer)
            if self._again:
                raise Retargeted

        while not self._all_known():
            check()
            frame = link.receive_frame(check)
            if frame.kind is Kind.HASHES and frame.file < len(self._store.files):
                self._store.add_hashes(frame.file, frame.piece, link.receive(frame.length, check))
            elif frame.kind is Kind.BYE:
                raise LinkLost("refused", bytes(link.receive(frame.length, check)).decode(errors="replace"))
            elif frame.kind is not Kind.ALIVE:
                raise ProtocolError(f"{frame.kind.name} from the head")
