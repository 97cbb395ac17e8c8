"""Whole relays, over the loopback with mutual TLS: where files land, what survives a change, what is not fetched."""

import os
import threading
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir, try_to_load_from_cache

from benchmarks.relay_lab import (
    COMMIT,
    REPOSITORY,
    REVISION,
    RelayProcess,
    RelayThread,
    make_content,
    make_manifest,
    put_into_cache,
    relay_lab,
    wait_until,
)
from fleet_agent.artifacts.cache import HubCache
from fleet_agent.artifacts.download import incomplete_path
from fleet_agent.artifacts.verified import VerifiedNotes
from fleet_agent.jobs.model import ArtifactFile
from fleet_agent.relay.control import (
    Allow,
    CorruptPiece,
    DamagedPart,
    FilePlaced,
    HashMismatch,
    HubSource,
    Limits,
    Peer,
    PeerLost,
    PeerRefused,
    Progress,
    Route,
    SourceFailed,
)
from fleet_agent.relay.manifest import Manifest
from support.relay_chains import PIECE, SIZES, assert_all_right, folder_source, send_chain, threads, wait_all
from support.stand_in_hub import StandInHub

ONE = {"model.gguf": 3_000_000}


def hub_manifest(hub: StandInHub) -> Manifest:
    """A model of one file that the hub has."""
    file = ArtifactFile(**hub.add(REPOSITORY, "model.gguf", os.urandom(3_000_000)))
    return Manifest(REPOSITORY, hub.commit(REPOSITORY), REVISION, (file,), PIECE)


def test_a_chain_puts_every_file_into_the_standard_cache(tmp_path: Path) -> None:
    with threads(tmp_path, 4) as lab:
        lab.start_all()
        send_chain(lab, lab.names, folder_source(tmp_path))
        wait_all(lab)
        assert_all_right(lab)
        for name in lab.names:
            hub = lab.hf_home(name) / "hub"
            (found,) = scan_cache_dir(hub).repos
            assert found.repo_id == REPOSITORY and {r.commit_hash for r in found.revisions} == {COMMIT}
            where = try_to_load_from_cache(REPOSITORY, "model.gguf", cache_dir=hub, revision=REVISION)
            assert Path(str(where)).read_bytes() == (tmp_path / "source" / "model.gguf").read_bytes()
            assert not list(hub.rglob("*.incomplete"))
        # Each byte went into each host once.
        received = [lab.relays[name].progress.received_bytes for name in lab.names]  # type: ignore[union-attr]
        assert received == [0, *[sum(SIZES.values())] * 3]


def test_pieces_are_passed_on_while_the_head_still_downloads(tmp_path: Path) -> None:
    with StandInHub(tmp_path / "hub", hold_after=1_500_000) as hub:
        manifest = hub_manifest(hub)
        with relay_lab(tmp_path / "lab", manifest, ["a", "b", "c"], kind=RelayThread) as lab:
            lab.start_all()
            send_chain(lab, lab.names, HubSource(hub.url))
            # The last host has what the hub has given so far, and nothing is in place anywhere.
            last = lab.relays["c"]
            last.wait_for(lambda e: isinstance(e, Progress) and e.verified_bytes >= 1_500_000 // PIECE * PIECE)
            assert not any(lab.blob(name).exists() for name in lab.names)
            hub.behaviour.released.set()
            wait_all(lab)
            assert_all_right(lab)
            assert sum(one.sent for one in hub.served) == 3_000_000


def test_a_head_that_dies_half_way_is_followed_by_one_that_goes_on_by_range(tmp_path: Path) -> None:
    with (
        StandInHub(tmp_path / "hub", hold_after=1_500_000) as hub,
        relay_lab(tmp_path / "lab", hub_manifest(hub), ["a", "b", "c"], kind=RelayThread) as lab,
    ):
        lab.start_all()
        send_chain(lab, lab.names, HubSource(hub.url))
        held = 1_500_000 // PIECE * PIECE
        for name in ("b", "c"):
            lab.relays[name].wait_for(lambda e: isinstance(e, Progress) and e.verified_bytes >= held)
        lab.relays["a"].ask_to_stop()  # its thread ends once the hub lets go of it
        before = len(hub.served)
        hub.behaviour.hold_after = 0
        send_chain(lab, ["b", "c"], HubSource(hub.url), sequence=2)
        for name in ("b", "c"):
            lab.relays[name].wait_until_complete()
        assert [lab.wrong_files(name) for name in ("b", "c")] == [[], []]
        assert hub.served[before].start == held
        hub.behaviour.released.set()


def test_a_killed_receiver_keeps_its_pieces(tmp_path: Path) -> None:
    files = make_content(tmp_path / "source", {"model.gguf": 8_000_000})
    manifest = make_manifest(files, 3, PIECE)
    with relay_lab(tmp_path / "lab", manifest, ["a", "b"], kind=RelayProcess) as lab:
        lab.start("a", upload_bytes_per_second=1_000_000)  # until it is killed, whatever else the machine does
        lab.start("b")
        lab.relays["a"].order(Route(1, folder=folder_source(tmp_path)))
        lab.relays["b"].order(Route(1, head=lab.peer("a"), upstream=lab.peer("a")))
        lab.relays["b"].wait_for(lambda e: isinstance(e, Progress) and e.verified_bytes > 2_000_000)
        lab.relays["b"].kill()
        kept = incomplete_path(lab.blob("b")).stat().st_size
        assert kept >= 2_000_000 and not lab.blob("b").exists()
        lab.relays["a"].order(Limits())
        again = lab.start("b")
        again.order(Route(1, head=lab.peer("a"), upstream=lab.peer("a")))
        again.wait_until_complete()
        assert lab.wrong_files("b") == []
        assert again.progress is not None
        # Only a piece that was being written when the process died may be fetched twice.
        assert again.progress.received_bytes <= 8_000_000 - kept + PIECE


def test_pieces_that_rotted_on_the_disk_are_fetched_again(tmp_path: Path) -> None:
    with threads(tmp_path, 2, ONE) as lab:
        cache = HubCache(lab.hf_home("h1"))
        cache.ensure_folders(REPOSITORY)
        content = bytearray((tmp_path / "source" / "model.gguf").read_bytes())
        content[10 * PIECE + 5] ^= 1
        incomplete_path(lab.blob("h1")).write_bytes(content[: 20 * PIECE + 100])
        lab.start_all()
        send_chain(lab, lab.names, folder_source(tmp_path))
        wait_all(lab)
        assert_all_right(lab)
        relay = lab.relays["h1"]
        assert relay.told(DamagedPart) == [DamagedPart("model.gguf", 10)]
        assert relay.progress is not None and relay.progress.received_bytes == 3_000_000 - 10 * PIECE


def test_a_change_of_upstream_loses_no_piece(tmp_path: Path) -> None:
    with threads(tmp_path, 4, {"model.gguf": 6_000_000}) as lab:
        lab.start("h0", upload_bytes_per_second=500_000)  # until all changes are done
        for name in lab.names[1:]:
            lab.start(name)
        send_chain(lab, lab.names, folder_source(tmp_path))
        relay = lab.relays["h3"]
        for sequence, upstream in ((2, "h1"), (3, "h2"), (4, "h1")):
            before = relay.progress.verified_bytes if relay.progress else 0
            relay.order(Route(sequence, head=lab.peer("h0"), upstream=lab.peer(upstream)))
            relay.wait_for(
                lambda e, s=sequence, u=upstream, b=before: (  # type: ignore[misc]
                    isinstance(e, Progress) and e.sequence == s and e.upstream == u and e.verified_bytes > b
                )
            )
        lab.relays["h0"].order(Limits())
        wait_all(lab)
        assert_all_right(lab)
        # Each piece came once, but for those under way from an upstream that was left.
        assert relay.progress is not None and relay.progress.received_bytes <= 6_000_000 + 3 * PIECE


def test_an_older_route_is_not_followed(tmp_path: Path) -> None:
    with threads(tmp_path, 2, ONE) as lab:
        lab.start_all()
        send_chain(lab, lab.names, folder_source(tmp_path), sequence=5)
        lab.relays["h1"].order(Route(4, head=Peer("h0", "127.0.0.1", 1), upstream=Peer("h0", "127.0.0.1", 1)))
        wait_all(lab)
        assert_all_right(lab)
        assert lab.relays["h1"].progress is not None and lab.relays["h1"].progress.sequence == 5


def test_what_is_there_already_is_not_fetched(tmp_path: Path) -> None:
    with threads(tmp_path, 3) as lab:
        put_into_cache(lab.hf_home("h1"), lab.manifest, tmp_path / "source")
        # The same content under another repository is linked, not moved.
        other = lab.hf_home("h2") / "hub" / "models--other--model" / "blobs"
        other.mkdir(parents=True)
        large = lab.blob("h2", 3)
        (other / large.name).write_bytes((tmp_path / "source" / "model.gguf").read_bytes())
        lab.start_all()
        send_chain(lab, lab.names, folder_source(tmp_path))
        wait_all(lab)
        assert_all_right(lab)
        assert lab.relays["h1"].progress.received_bytes == 0  # type: ignore[union-attr]
        assert {e.path: e.fetched for e in lab.relays["h2"].told(FilePlaced)} == {
            "config.json": True, "empty.txt": True, "original/tokenizer.json": True, "model.gguf": False,
        }  # fmt: skip
        assert large.samefile(other / large.name)


def test_a_damaged_copy_in_place_is_mended_from_its_first_wrong_piece(tmp_path: Path) -> None:
    with threads(tmp_path, 2, ONE) as lab:
        put_into_cache(lab.hf_home("h1"), lab.manifest, tmp_path / "source")
        blob = lab.blob("h1")
        content = bytearray(blob.read_bytes())
        blob.unlink()
        content[-1] ^= 1
        blob.write_bytes(content)
        lab.start_all()
        send_chain(lab, lab.names, folder_source(tmp_path))
        wait_all(lab)
        assert_all_right(lab)
        assert lab.relays["h1"].progress.received_bytes <= PIECE  # type: ignore[union-attr]


def test_a_wrong_piece_is_not_stored_and_its_server_mends_its_disk(tmp_path: Path) -> None:
    """h1 has a note that it has verified its copy, and the disk lost a bit since, so it serves it."""
    with threads(tmp_path, 3, ONE) as lab:
        put_into_cache(lab.hf_home("h1"), lab.manifest, tmp_path / "source")
        blob = lab.blob("h1")
        content = bytearray(blob.read_bytes())
        blob.unlink()
        content[5 * PIECE] ^= 1
        blob.write_bytes(content)
        VerifiedNotes(tmp_path / "lab" / "h1" / "machine").write(blob)
        lab.start_all()
        send_chain(lab, lab.names, folder_source(tmp_path))
        relay = lab.relays["h2"]
        told = relay.wait_for(lambda e: isinstance(e, CorruptPiece))
        assert told == CorruptPiece("h1", "model.gguf", 5)
        assert incomplete_path(lab.blob("h2")).stat().st_size == 5 * PIECE
        assert not lab.blob("h2").exists()
        relay.order(Route(2, head=lab.peer("h0"), upstream=lab.peer("h0")))
        relay.wait_until_complete()
        assert lab.wrong_files("h2") == []


def test_a_server_that_relayed_it_finds_its_own_damage_and_mends_it(tmp_path: Path) -> None:
    with threads(tmp_path, 3, ONE) as lab:
        lab.start("h0")
        lab.start("h1")
        send_chain(lab, ["h0", "h1"], folder_source(tmp_path))
        lab.relays["h1"].wait_until_complete()
        with lab.blob("h1").open("r+b") as stream:
            stream.seek(7 * PIECE)
            byte = stream.read(1)
            stream.seek(7 * PIECE)
            stream.write(bytes([byte[0] ^ 1]))
        late = lab.start("h2")
        late.order(Route(1, head=lab.peer("h0"), upstream=lab.peer("h1")))
        late.wait_for(lambda e: isinstance(e, CorruptPiece))
        assert lab.relays["h1"].wait_for(lambda e: isinstance(e, DamagedPart)) == DamagedPart("model.gguf", 7)
        late.order(Route(2, head=lab.peer("h0"), upstream=lab.peer("h0")))
        late.wait_until_complete()
        wait_until(lambda: lab.wrong_files("h1") == [], 30.0, "h1 mends its copy")
        assert_all_right(lab)


def test_a_head_whose_file_is_not_the_hubs_puts_nothing_in_place(tmp_path: Path) -> None:
    with threads(tmp_path, 3, ONE) as lab:
        path = tmp_path / "source" / "model.gguf"
        right = path.read_bytes()
        path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
        lab.start_all()
        send_chain(lab, lab.names, folder_source(tmp_path))
        failed = lab.relays["h0"].wait_for(lambda e: isinstance(e, SourceFailed))
        assert isinstance(failed, SourceFailed) and failed.code == "hash-mismatch"
        assert not any(lab.blob(name).exists() for name in lab.names)
        # With a right source all of them get there, from whatever state they are in.
        path.write_bytes(right)
        send_chain(lab, ["h1", "h0", "h2"], folder_source(tmp_path), sequence=2)
        wait_all(lab)
        assert_all_right(lab)


def test_pieces_that_the_head_announced_do_not_make_the_hubs_file(tmp_path: Path) -> None:
    """The head trusts a copy that it once verified, and whose disk lost a bit since: no host takes it for the file."""
    with threads(tmp_path, 3, ONE) as lab:
        put_into_cache(lab.hf_home("h0"), lab.manifest, tmp_path / "source")
        blob = lab.blob("h0")
        content = bytearray(blob.read_bytes())
        blob.unlink()
        content[-1] ^= 1
        blob.write_bytes(content)
        VerifiedNotes(tmp_path / "lab" / "h0" / "machine").write(blob)
        lab.start_all()
        send_chain(lab, lab.names, None)
        for name in ("h1", "h2"):
            assert lab.relays[name].wait_for(lambda e: isinstance(e, HashMismatch)) == HashMismatch("h0", "model.gguf")
            assert not lab.blob(name).exists()
        send_chain(lab, ["h1", "h2"], folder_source(tmp_path), sequence=2)
        for name in ("h1", "h2"):
            lab.relays[name].wait_until_complete()
            assert lab.wrong_files(name) == []


def test_a_full_disk_is_found_before_a_byte_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fleet_agent.relay import placing

    monkeypatch.setattr(placing, "free_bytes", lambda path: 2_999_999)
    with threads(tmp_path, 1, ONE) as lab:
        relay = lab.start("h0")
        assert relay.end() == 1
        failure = relay.failure()
        assert failure is not None and failure.code == "disk-full" and "3.00 MB" in failure.message
        assert not incomplete_path(lab.blob("h0")).exists()


def test_a_disk_that_fills_up_ends_the_relay_and_keeps_what_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        if offset >= 10 * PIECE and threading.current_thread().name == "receiver":
            raise OSError(28, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with threads(tmp_path, 2, ONE) as lab:
        lab.start_all()
        send_chain(lab, lab.names, folder_source(tmp_path))
        assert lab.relays["h1"].end() == 1
        failure = lab.relays["h1"].failure()
        assert failure is not None and failure.code == "disk-full"
        assert incomplete_path(lab.blob("h1")).stat().st_size == 9 * PIECE  # some room is given back
        monkeypatch.undo()
        lab.start("h1").order(Route(1, head=lab.peer("h0"), upstream=lab.peer("h0")))
        lab.relays["h1"].wait_until_complete()
        assert_all_right(lab)


def test_two_rollouts_of_one_model_on_one_host_fetch_it_once(tmp_path: Path) -> None:
    with threads(tmp_path / "one", 2, ONE) as first, threads(tmp_path / "one", 2, ONE) as second:
        first.start("h0", upload_bytes_per_second=2_000_000)
        first.start("h1")
        send_chain(first, first.names, folder_source(tmp_path / "one"))
        first.relays["h1"].wait_for(lambda e: isinstance(e, Progress) and e.verified_bytes > 0)
        second.start_all()
        send_chain(second, second.names, folder_source(tmp_path / "one"))
        wait_all(first)
        first.stop()
        wait_all(second)
        assert_all_right(second)
        assert second.relays["h1"].progress.received_bytes == 0  # type: ignore[union-attr]


def test_rates_are_held_and_can_be_changed(tmp_path: Path) -> None:
    with threads(tmp_path, 2, ONE) as lab:
        lab.start("h0", upload_bytes_per_second=400_000)
        lab.start("h1")
        send_chain(lab, lab.names, folder_source(tmp_path))
        relay = lab.relays["h1"]
        relay.wait_for(lambda e: isinstance(e, Progress) and e.received_bytes > 400_000)
        # Two seconds' worth and the burst at most: a limit never lets through more, however slow this machine is.
        told = [e for e in relay.told(Progress) if e.bytes_per_second > 0]
        assert all(e.bytes_per_second <= 400_000 * 1.5 for e in told[2:])
        lab.relays["h0"].order(Limits())
        wait_all(lab)


def test_who_is_no_longer_allowed_is_cut_off(tmp_path: Path) -> None:
    with threads(tmp_path, 3, ONE) as lab:
        lab.start("h0", upload_bytes_per_second=500_000)
        lab.start("h1")
        send_chain(lab, ["h0", "h1"], folder_source(tmp_path))
        relay = lab.relays["h1"]
        relay.wait_for(lambda e: isinstance(e, Progress) and e.received_bytes > 0)
        lab.relays["h0"].order(Allow(("h0", "h2")))
        lost = relay.wait_for(lambda e: isinstance(e, PeerLost) and e.reason == "refused")
        assert isinstance(lost, PeerLost) and "not among the rollout's nodes" in lost.detail
        refused = lab.relays["h0"].wait_for(lambda e: isinstance(e, PeerRefused))
        assert isinstance(refused, PeerRefused) and refused.name == "h1"
