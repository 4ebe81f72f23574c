"""A model on its way in: what is on the disk after a break, what is looked at before it is believed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from meshnode import errors, ids
from meshnode.chunks import frames, listing
from meshnode.models import gguf, hashing, incoming, stock, store, vetting
from tests.chunks import shelves


@pytest.fixture(autouse=True)
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "CHUNK_BYTES", 1 << 10)


@pytest.fixture
def source(tmp_path: Path) -> tuple[stock.Stock, store.Installed]:
    models, installed = shelves.model(tmp_path / "there")
    return stock.Stock(models), installed


def opened(source: tuple[stock.Stock, store.Installed], folder: Path) -> tuple[incoming.Incoming, listing.Listing]:
    shelf, installed = source
    whole = listing.decode(shelf.read(installed.digest, frames.LISTING))
    return incoming.Incoming(store.Models(folder), installed.digest), whole


def test_what_was_kept_is_there_after_a_break_and_what_was_spoilt_is_not(
    source: tuple[stock.Stock, store.Installed], tmp_path: Path
) -> None:
    into, whole = opened(source, tmp_path / "here")
    assert into.prepare(whole) == frozenset()
    for index in (0, 3, whole.chunk_count - 1):
        into.keep(index, source[0].read(whole.digest, index))
    into.keep(5, bytes(whole.chunk(5).size))  # as if the machine had died before its bytes were on the disk
    into.close()
    again, _ = opened(source, tmp_path / "here")
    assert again.prepare(whole) == {0, 3, whole.chunk_count - 1}
    again.close()
    assert incoming.left(tmp_path / "here") == [f"{whole.digest.hex()}.new"]
    assert store.Models(tmp_path / "here").list() == []


def test_every_chunk_makes_a_model(source: tuple[stock.Stock, store.Installed], tmp_path: Path) -> None:
    into, whole = opened(source, tmp_path / "here")
    into.prepare(whole)
    for index in range(whole.chunk_count):
        into.keep(index, source[0].read(whole.digest, index))
    installed = into.install("mine")
    assert (installed.name, installed.digest) == ("mine", whole.digest)
    assert hashing.read(installed.folder) == whole
    assert incoming.left(tmp_path / "here") == []


def test_a_disk_without_room_is_said_before_anything_is_written(
    source: tuple[stock.Stock, store.Installed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into, whole = opened(source, tmp_path / "here")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(errors.StoreError, match="no room for a model"):
        into.prepare(whole)
    assert not into.folder.exists()


def test_a_link_where_a_file_should_be_is_not_followed(
    source: tuple[stock.Stock, store.Installed], tmp_path: Path
) -> None:
    into, whole = opened(source, tmp_path / "here")
    into.folder.mkdir(parents=True)
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (into.folder / gguf.CONFIG).symlink_to(mine)
    with pytest.raises(errors.StoreError):
        into.prepare(whole)
    into.close()
    assert mine.read_text() == "precious"


def test_a_model_whose_disk_forgets_is_not_given(source: tuple[stock.Stock, store.Installed]) -> None:
    shelf, installed = source
    good = shelf.read(installed.digest, 2)
    with (installed.folder / gguf.WEIGHTS).open("r+b") as file:
        file.seek(2 * listing.CHUNK_BYTES)
        file.write(bytes([good[0] ^ 1]))
    with pytest.raises(errors.StoreError, match="not those that were written"):
        shelf.read(installed.digest, 2)
    assert shelf.read(installed.digest, 1)


def test_a_stock_refuses_what_it_has_not(source: tuple[stock.Stock, store.Installed]) -> None:
    shelf, installed = source
    with pytest.raises(errors.StoreError, match="not here"):
        shelf.read(ids.digest(b"another"), 0)
    with pytest.raises(errors.PeerError):
        shelf.read(installed.digest, 1 << 20)
    (only,) = shelf.look()
    assert (only.name, only.digest, only.disk_bytes) == ("tiny", installed.digest, installed.disk_bytes)


def test_a_card_of_whole_file_digests_is_written_anew(source: tuple[stock.Stock, store.Installed]) -> None:
    _, installed = source
    path = installed.folder / "model.json"
    card = json.loads(path.read_text())
    del card["version"]
    path.write_text(json.dumps(card | {"digest": "00" * 32}))
    (installed.folder / hashing.LISTING).unlink()
    models = store.Models(installed.folder.parent)
    assert models.installed("tiny") == installed
    assert json.loads(path.read_text())["digest"] == installed.digest.hex()
    assert models.find(installed.digest.hex()) == models.find("tiny") == installed


def test_nodes_that_renew_a_card_at_once_never_see_half_of_one(source: tuple[stock.Stock, store.Installed]) -> None:
    _, installed = source
    path = installed.folder / "model.json"
    old = json.loads(path.read_text())
    del old["version"]
    models = store.Models(installed.folder.parent)
    for _ in range(20):
        path.write_text(json.dumps(old))
        with futures.ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda _: models.installed("tiny"), range(8))) == {installed}
    assert sorted(one.name for one in installed.folder.iterdir()) == sorted((*listing.FILES, "listing", "model.json"))


# ------------------------------------------------------------------------------------------------------------- vetting


def edited(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return edit


def config(**changes: Any) -> Callable[[Path], None]:
    return edited(gguf.CONFIG, lambda found: found | changes)


def lacking(key: str) -> Callable[[Path], None]:
    return edited(gguf.CONFIG, lambda found: {name: value for name, value in found.items() if name != key})


def infinite(folder: Path) -> None:
    found = safetensors.numpy.load_file(folder / gguf.WEIGHTS)
    found["model.norm.weight"] = np.full_like(found["model.norm.weight"], np.inf)
    safetensors.numpy.save_file(found, folder / gguf.WEIGHTS)


def torn(folder: Path) -> None:
    os.truncate(folder / gguf.WEIGHTS, (folder / gguf.WEIGHTS).stat().st_size - 1)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no object": (edited(gguf.CONFIG, lambda found: [found]), "not an object"),
    "a layer more": (config(layers=3), "lack"),
    "layers without end": (config(layers=1 << 30), "layers"),
    "a missing key": (lacking("heads"), "heads"),
    "heads in words": (config(heads="four"), "heads"),
    "heads that do not share": (config(kv_heads=3), "share"),
    "an unknown key": (config(experts=8), "experts"),
    "odd divisors": (config(rope_divisors=[1.0]), "pair of dimensions"),
    "divisors of nothing": (config(rope_divisors=[0.0] * 4), "rope_divisors"),
    "a switch in words": (config(tied="maybe"), "tied"),
    "an end beyond the vocabulary": (config(eos=[1 << 20]), "eos"),
    "no special tokens": (config(special={}), "special"),
    "a special token without letters": (config(special={"": 1}), "special"),
    "a template that is none": (config(chat_template=7), "chat_template"),
    "a template that escapes": (config(chat_template="{{ ''.__class__.__mro__ }}"), "refused"),
    "texts that are none": (config(template_tokens={"bos_token": 1}), "template_tokens"),
    "not finite": (infinite, "not finite"),
    "torn": (torn, "end at byte"),
    "no tokenizer": (edited(gguf.TOKENIZER, lambda found: {}), "refused"),
    "a tokenizer of many": (
        edited(gguf.TOKENIZER, lambda found: found | {"model": found["model"] | {"vocab": {"Ġ": 9999}, "merges": []}}),
        "beyond the vocabulary",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_model_is_refused_by_name(
    source: tuple[stock.Stock, store.Installed], tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(source[1].folder, folder)
    vetting.check(folder)
    spoil, words = FAULTS[fault]
    spoil(folder)
    with pytest.raises((errors.EngineError, errors.StoreError), match=words):
        vetting.check(folder)
