"""Weights through files: what is published arrives bit for bit, what is damaged is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import xxhash

from penstock.services.contracts import WeightsError
from penstock.services.versions import Version
from penstock.services.weights.files import FileReceiver, FileSender, WeightsMissing
from penstock.services.weights.manifest import Manifest, ProbeRecord, probe_tokens

V1, V2, V3 = (Version(0, step) for step in (1, 2, 3))


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "wide": torch.randn(3, 5, generator=generator).t(),  # not contiguous
        "half": torch.randn(4, generator=generator).to(torch.bfloat16),
        "one": torch.randn((), generator=generator),
    }


@pytest.fixture
def sender(tmp_path: Path) -> FileSender:
    return FileSender(tmp_path / "weights", shard_bytes=40)


@pytest.fixture
def receiver(sender: FileSender) -> FileReceiver:
    return FileReceiver(sender.folder, deadline=0.1)


def test_what_is_published_arrives_bit_for_bit(sender: FileSender, receiver: FileReceiver):
    sender.publish(V1, tensors().items())
    with receiver.fetch(V1) as found:
        assert {name: t.dtype for name, t in found.items()} == {name: t.dtype for name, t in tensors().items()}
        assert all(torch.equal(found[name], t) for name, t in tensors().items())


def test_the_manifest_says_what_was_published(sender: FileSender, receiver: FileReceiver):
    probe = ProbeRecord((1, 2, 3), (-0.5, -1.25))
    sender.publish(V1, tensors().items(), probe)
    manifest = receiver.manifest(V1)
    assert manifest.probe == probe and manifest.total_bytes == 15 * 4 + 4 * 2 + 4
    half = next(t for t in manifest.tensors if t.name == "half")
    raw = tensors()["half"].view(torch.int16).numpy().tobytes()
    assert (half.shape, half.dtype, half.checksum) == ((4,), "bfloat16", xxhash.xxh3_64_hexdigest(raw))
    assert len({t.file for t in manifest.tensors}) == 2  # `wide` alone fills a shard of 40 bytes
    assert Manifest.decode(manifest.encode(), "here") == manifest


def test_the_same_version_can_be_published_again(sender: FileSender, receiver: FileReceiver):
    sender.publish(V1, tensors(0).items())
    sender.publish(V1, tensors(1).items())
    with receiver.fetch(V1) as found:
        assert torch.equal(found["half"], tensors(1)["half"])


def test_a_damaged_tensor_is_refused_by_version_tensor_and_file(sender: FileSender, receiver: FileReceiver):
    sender.publish(V1, tensors().items())
    file = sender.folder / "0.1" / "00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=r"version 0\.1, tensor '\w+' in .*00001\.safetensors: the checksum is"):
        receiver.fetch(V1).__enter__()


def test_a_file_that_is_cut_short_is_refused(sender: FileSender, receiver: FileReceiver):
    sender.publish(V1, tensors().items())
    file = sender.folder / "0.1" / "00000.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(WeightsError, match=r"version 0\.1: the file .*00000\.safetensors, with 'wide', is damaged"):
        receiver.fetch(V1).__enter__()


def test_a_missing_file_is_named(sender: FileSender, receiver: FileReceiver):
    sender.publish(V1, tensors().items())
    (sender.folder / "0.1" / "00000.safetensors").unlink()
    with pytest.raises(WeightsMissing, match=r"00000\.safetensors is missing; it holds 'wide'"):
        receiver.fetch(V1).__enter__()


def test_a_file_with_other_tensors_is_refused(sender: FileSender, receiver: FileReceiver):
    from safetensors.torch import save_file

    sender.publish(V1, tensors().items())
    file = sender.folder / "0.1" / "00000.safetensors"
    save_file({"wide": torch.zeros(5, 4)}, file)
    with pytest.raises(WeightsError, match=r"'wide' .*expected float32\[5, 3\], found float32\[5, 4\]"):
        receiver.fetch(V1).__enter__()
    save_file({"wide": tensors()["wide"].contiguous(), "more": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match="holds 'more', which its manifest lacks"):
        receiver.fetch(V1).__enter__()
    save_file({"other": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match=r"tensor 'wide' in .*: missing"):
        receiver.fetch(V1).__enter__()


@pytest.mark.parametrize(
    ("change", "error"),
    [({"schema": 2}, "schema 2, this build reads 1"), ({"version": "0.7"}, "is the manifest of version 0.7"),
     ({"total_bytes": 1}, "total_bytes is 1"), ({"more": 1}, "unknown field `more`")],
)  # fmt: skip
def test_another_manifest_is_refused(sender: FileSender, receiver: FileReceiver, change: dict[str, object], error: str):
    sender.publish(V1, tensors().items())
    file = sender.folder / "0.1" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(WeightsError, match=error):
        receiver.manifest(V1)


def test_a_version_that_does_not_come_is_waited_for_only_so_long(sender: FileSender, receiver: FileReceiver):
    sender.publish(V1, tensors().items())
    with pytest.raises(WeightsMissing, match=r"version 0\.3 are not in .*waited 0\.1 s .*there are: 0\.1"):
        receiver.manifest(V3)


def test_retiring_deletes_all_but_what_is_kept(sender: FileSender, receiver: FileReceiver):
    for version in (V1, V2, V3):
        sender.publish(version, tensors().items())
    assert sender.retire(frozenset([V2, Version(4, 4)])) == [V1, V3]
    assert [p.name for p in sender.folder.iterdir()] == ["0.2"]
    with pytest.raises(WeightsMissing):
        receiver.manifest(V1)


def test_a_version_stays_readable_while_it_is_retired(sender: FileSender, receiver: FileReceiver):
    sender.publish(V1, tensors().items())
    with receiver.fetch(V1) as found:
        sender.retire(frozenset())
        assert torch.equal(found["wide"], tensors()["wide"])


def test_closing_leaves_nothing_and_a_new_sender_clears_half_written_versions(sender: FileSender):
    (sender.folder / ".0.5.writing").mkdir()
    again = FileSender(sender.folder)
    assert list(sender.folder.iterdir()) == []
    again.publish(V1, tensors().items())
    again.close()
    assert not sender.folder.exists()


def test_a_failed_publication_leaves_nothing_behind(sender: FileSender, receiver: FileReceiver):
    def breaks():
        yield "wide", torch.zeros(100)
        raise ValueError("gathering failed")

    with pytest.raises(ValueError, match="gathering failed"):
        sender.publish(V1, breaks())
    with pytest.raises(WeightsError, match="has no tensors"):
        sender.publish(V1, [])
    assert list(sender.folder.iterdir()) == []


def test_a_probe_fits_its_tokens():
    assert len(set(probe_tokens(1000))) == 32 and max(probe_tokens(50)) < 50
    assert probe_tokens(1000) == probe_tokens(1000)
    with pytest.raises(ValueError, match="3 tokens need 2 log-probs"):
        ProbeRecord((1, 2, 3), (-1.0,))
