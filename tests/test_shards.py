"""Packing a cache loses nothing, whenever it is killed, however many do it; damage costs the entries that it hits."""

import hashlib
import os
import random
import shutil
import signal
import sys
import time
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from patina.data import shards
from patina.data.entries import place, read, write
from patina.data.shards import Shards, pack

NUMBER = 130
KEYS = [hashlib.sha256(bytes([at])).hexdigest() for at in range(NUMBER)]
FRESH = get_context("forkserver")
FRESH.set_forkserver_preload(["patina.data.shards"])


def entry(key: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(int(key[:8], 16))
    return {"mean": torch.randn(4, 3, 5, generator=generator), "text": torch.randn(7, generator=generator).half()}


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("singles")
    for key in KEYS:
        write(place(folder, key), entry(key))
    return folder


@pytest.fixture
def cache(singles, tmp_path):
    return Path(shutil.copytree(singles, tmp_path / "cache"))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def lost(folder: Path) -> list[str]:
    """Keys of entries that cannot be read; those that can be must be right."""
    kept, gone = Shards(folder), []
    for key in KEYS:
        if (found := kept.read(key)) is None:
            gone.append(key)
        else:
            assert found.keys() == entry(key).keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in entry(key).items())
    return gone


def test_many_entries_become_few_files(cache, monkeypatch):
    stranger = shutil.copy(place(cache, KEYS[3]), cache / KEYS[3][:2] / "some-lora.safetensors")
    monkeypatch.setattr(shards, "LARGE", 100 * (240 + 14))
    assert lost(cache) == []
    pack(cache)
    assert [path.name[:6] for path in files(cache) if path.parent == cache] == ["shard-"] * 2
    assert [path for path in files(cache) if path.parent != cache] == [stranger]
    assert lost(cache) == []


def test_few_entries_stay_as_they_are(cache):
    for key in KEYS[shards.FEWEST - 1 :]:
        place(cache, key).unlink()
    before = files(cache)
    pack(cache)
    assert files(cache) == before
    assert lost(cache) == KEYS[shards.FEWEST - 1 :]


def test_without_room_for_a_shard_they_stay_as_they_are(cache, monkeypatch):
    monkeypatch.setattr(shards, "LARGE", shutil.disk_usage(cache).total)
    before = files(cache)
    pack(cache)
    assert files(cache) == before


def test_what_is_mapped_cannot_change_the_file(cache):
    pack(cache)
    found = Shards(cache).read(KEYS[0])
    found["mean"].zero_()
    assert lost(cache) == []


def die(folder: Path, step: int) -> None:
    """Pack, killed before the step-th time that a file is renamed or removed."""
    steps = count()
    sys.addaudithook(
        lambda event, _: (
            os.kill(os.getpid(), signal.SIGKILL)
            if event in ("os.rename", "os.remove") and next(steps) == step
            else None
        )
    )
    pack(folder)


@pytest.mark.parametrize("step", [0, 1, 2, 60, NUMBER + 1])
def test_killed_between_any_two_steps_it_loses_nothing(cache, step):
    process = FRESH.Process(target=die, args=(cache, step))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert lost(cache) == []
    yesterday = time.time() - 1.1 * shards.DAY
    for path in cache.glob(".shard-*"):
        os.utime(path, (yesterday, yesterday))
    pack(cache)
    assert lost(cache) == []
    assert len(files(cache)) == 1


def test_two_may_pack_while_a_third_reads(cache):
    packing = [FRESH.Process(target=pack, args=(cache,)) for _ in range(2)]
    for process in packing:
        process.start()
    while any(process.is_alive() for process in packing):
        assert lost(cache) == []
    assert [process.exitcode for process in packing] == [0, 0]
    assert lost(cache) == []
    assert all(path.parent == cache for path in files(cache))


def test_one_opened_before_the_packing_finds_what_was_packed(cache):
    kept = Shards(cache)
    pack(cache)
    assert all(kept.read(key) is not None for key in KEYS)


def test_damage_costs_the_entries_that_it_hits(cache):
    pack(cache)
    (shard,) = files(cache)
    whole, rng = shard.read_bytes(), random.Random(0)
    for at in rng.sample(range(len(whole)), 30):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ rng.randint(1, 255)]) + whole[at + 1 :])
        start = int.from_bytes(whole[:8], "little") + 8
        assert len(lost(cache)) <= (1 if at >= start else NUMBER)
    for cut in (0, 5, 1000, len(whole) - 1):
        shard.write_bytes(whole[:cut])
        assert lost(cache) == KEYS


def test_a_damaged_shard_is_replaced_by_what_is_made_anew(cache, singles):
    pack(cache)
    (shard,) = files(cache)
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    shutil.copytree(singles, cache, dirs_exist_ok=True)
    assert lost(cache) == []
    pack(cache)
    assert files(cache) == [shard]
    assert shard.read_bytes() == whole


def test_an_entry_that_its_shard_has_damaged_keeps_its_own_file(cache, singles):
    pack(cache)
    (shard,) = files(cache)
    whole, hit = shard.read_bytes(), entry(KEYS[5])["mean"].numpy().tobytes()
    assert whole.count(hit) == 1
    shard.write_bytes(whole.replace(hit, bytes(len(hit))))
    assert lost(cache) == [KEYS[5]]
    shutil.copytree(singles, cache, dirs_exist_ok=True)
    pack(cache)
    assert lost(cache) == []
    assert files(cache) == sorted([place(cache, KEYS[5]), shard])


def test_an_entry_made_anew_counts_and_keeps_its_own_file(cache, singles):
    pack(cache)
    newer = {"mean": torch.zeros(2)}
    shutil.copytree(singles, cache, dirs_exist_ok=True)
    write(place(cache, KEYS[5]), newer)
    pack(cache)
    assert [path.stem for path in files(cache) if path.parent != cache] == [KEYS[5]]
    assert torch.equal(Shards(cache).read(KEYS[5])["mean"], newer["mean"])


def test_a_damaged_single_entry_stays_out_of_the_shard(cache):
    path = place(cache, KEYS[5])
    path.write_bytes(path.read_bytes()[:-3])
    pack(cache)
    assert lost(cache) == [KEYS[5]]
    write(path, entry(KEYS[5]))
    assert lost(cache) == []
    assert read(path) is not None
