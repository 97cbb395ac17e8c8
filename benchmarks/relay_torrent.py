"""`python -m benchmarks.relay_torrent TORRENT synced|as-it-comes ADDRESS FILE seed|OTHERS...`: a host of a swarm.

The seed hashes FILE and writes TORRENT; a peer waits for TORRENT (which costs the network nothing here), fetches FILE
from all others and goes on serving until its standard input ends. A racer of benchmarks/relay_race.py.
"""

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

libtorrent: Any = importlib.import_module("libtorrent")  # no dependency of fleet: types may be absent
PORT = 6881
SMALLEST_PIECE_BYTES, LARGEST_PIECE_BYTES = 1 << 14, 1 << 20
WANTED_PIECES = 500
PLAIN_TEXT = 2  # pe_disabled
POLL_SECONDS = 0.02
# For a swarm that is alone on a fast, short network: TCP only, nobody choked, much under way, nothing looked up.
SETTINGS: dict[str, Any] = {
    "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "enable_incoming_utp": False, "enable_outgoing_utp": False,
    "in_enc_policy": PLAIN_TEXT, "out_enc_policy": PLAIN_TEXT,
    "unchoke_slots_limit": -1, "connections_limit": 1000, "connection_speed": 1000, "min_reconnect_time": 1,
    "smooth_connects": False, "allowed_fast_set_size": 0, "listen_queue_size": 1000,
    "max_out_request_queue": 1500, "max_allowed_in_request_queue": 3000, "request_queue_time": 1,
    "whole_pieces_threshold": 1, "send_buffer_watermark": 3 << 20, "send_buffer_low_watermark": 1 << 20,
    "predictive_piece_announce": 200, "hashing_threads": 1, "aio_threads": 4, "max_queued_disk_bytes": 64 << 20,
    "alert_mask": 0,
}  # fmt: skip


def seed(torrent: Path, file: Path) -> None:
    size = file.stat().st_size
    piece = SMALLEST_PIECE_BYTES
    while piece * 2 <= min(size // WANTED_PIECES, LARGEST_PIECE_BYTES):
        piece *= 2
    made = libtorrent.create_torrent(libtorrent.list_files(str(file)), piece, libtorrent.create_torrent.v1_only)
    libtorrent.set_piece_hashes(made, str(file.parent))
    part = torrent.with_suffix(".part")
    part.write_bytes(libtorrent.bencode(made.generate()))
    part.rename(torrent)


def main() -> None:
    torrent, synced, address, file = Path(sys.argv[1]), sys.argv[2] == "synced", sys.argv[3], Path(sys.argv[4])
    others = sys.argv[5:]
    session = libtorrent.session({**SETTINGS, "listen_interfaces": f"{address}:{PORT}"})
    print("ready", flush=True)
    sys.stdin.readline()
    adding = libtorrent.add_torrent_params()
    if others == ["seed"]:
        others = []
        seed(torrent, file)
        adding.flags |= libtorrent.torrent_flags.seed_mode
    while not torrent.exists():
        time.sleep(POLL_SECONDS)
    adding.ti = libtorrent.torrent_info(str(torrent))
    adding.save_path = str(file.parent)
    adding.flags &= ~(libtorrent.torrent_flags.auto_managed | libtorrent.torrent_flags.paused)
    handle = session.add_torrent(adding)
    for other in others:
        handle.connect_peer((other, PORT))
    while not handle.status().is_seeding:
        time.sleep(POLL_SECONDS)
    if synced:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    print("done", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
