"""Files appear whole or not at all, and what is no longer whole is noticed."""

import errno
import json
import os
import stat

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from nullrec_lib.errors import InputError
from nullrec_lib.files import (DamagedFile, alone, atomic, read_json, read_tensors, sweep, write_json, write_tensors,
                               write_text)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, error, old):
    path = tmp_path / "result.txt"
    if old:
        path.write_text(old)
    with pytest.raises(error), atomic(path) as temporary:
        temporary.write_text("half")
        raise error
    assert names(tmp_path) == (["result.txt"] if old else [])
    if old:
        assert path.read_text() == old


def test_the_old_file_is_there_until_the_end(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent  # the same file system, so that renaming is atomic
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["result.txt"]


def test_a_reader_in_the_middle_of_the_old_file_reads_it_to_its_end(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_a_failure_of_the_last_step_leaves_no_temporary(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: cannot be written"):
        write_text(tmp_path / "folder", "text")
    assert names(tmp_path) == ["folder"]


def test_folders_are_made_and_the_file_is_readable_like_any_other(tmp_path):
    path = tmp_path / "a" / "b" / "result.txt"
    mask = os.umask(0o027)
    try:
        write_text(path, "Größe ∅")
        assert os.umask(0o027) == 0o027  # still the caller's
    finally:
        os.umask(mask)
    assert path.read_bytes() == "Größe ∅".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), {1, 2}])
def test_json_refuses_what_it_has_no_word_for(tmp_path, bad):
    path = tmp_path / "result.json"
    write_json(path, {"fine": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"deep": [1, {"figure": bad}]})
    assert json.loads(path.read_text()) == {"fine": 1} and names(tmp_path) == ["result.json"]


def test_json_round_trip(tmp_path):
    content = {"name": "Müsli", "figures": [0.1, 1e-300, 2**60], "none": None, "deep": {"yes": True}}
    write_json(tmp_path / "result.json", content)
    text = (tmp_path / "result.json").read_text(encoding="utf-8")
    assert json.loads(text) == content == read_json(tmp_path / "result.json")
    assert text.rstrip(" \t\n").endswith("}") and text.endswith("\n") and "Müsli" in text


def test_tensors_and_their_metadata_round_trip(tmp_path):
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
        "b": torch.tensor([2**60]),
        "c": torch.tensor([True, False]),
    }
    about = {"seed": 22, "name": "größer", "nested": {"lr": 1e-3, "list": [1, None]}}
    write_tensors(tmp_path / "state.safetensors", tensors, about)
    back = load_file(tmp_path / "state.safetensors")
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype
    with safe_open(tmp_path / "state.safetensors", "pt") as handle:
        assert json.loads(handle.metadata()["about"]) == about
    write_tensors(tmp_path / "plain.safetensors", tensors)
    with safe_open(tmp_path / "plain.safetensors", "pt") as handle:
        assert json.loads(handle.metadata()["about"]) == {}
    assert read_tensors(tmp_path / "plain.safetensors")[1] == {} and read_tensors(tmp_path / "state.safetensors")[1] == about
    assert names(tmp_path) == ["plain.safetensors", "state.safetensors"]


def test_tensors_that_cannot_be_written_leave_the_old_file(tmp_path):
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"a": torch.zeros(2)})
    with pytest.raises(RuntimeError):
        write_tensors(path, {"a": torch.eye(3).to_sparse()})
    assert torch.equal(load_file(path)["a"], torch.zeros(2)) and names(tmp_path) == ["state.safetensors"]


# Damage


def every_bit(path):
    """The file with each of its bits flipped, one at a time."""
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            yield place
    path.write_bytes(whole)


@pytest.mark.parametrize("content", [{"name": "größer", "figures": [0.5, 12]}, [1, {"epoch": 2}], "text", 7])
def test_no_flipped_bit_of_a_json_file_changes_what_is_read(tmp_path, content):
    path = tmp_path / "a.json"
    write_json(path, content)
    for place in every_bit(path):
        try:
            back = read_json(path)
        except DamagedFile as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert back == content, place


def test_no_flipped_bit_of_a_tensor_file_changes_what_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"rows": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3), "none": torch.zeros(0, 4),
               "few": torch.ones(3, dtype=torch.bfloat16), "yes": torch.tensor([True, False])}
    write_tensors(path, tensors, {"epoch": 3})
    noticed = 0
    for place in every_bit(path):
        try:
            back, about = read_tensors(path, about=["epoch"])
        except DamagedFile:
            noticed += 1
            continue
        assert about == {"epoch": 3} and set(back) == set(tensors), place
        for name, tensor in tensors.items():
            assert torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype, (place, name)
    assert noticed > 1000


@pytest.mark.parametrize("name", ["a.json", "a.safetensors"])
def test_a_file_of_any_length_is_whole_or_damaged(tmp_path, name):
    path = tmp_path / name
    read = read_json if name.endswith("json") else read_tensors
    write_json(path, {"a": 1}) if name.endswith("json") else write_tensors(path, {"a": torch.ones(3)})
    whole, right = path.read_bytes(), str(read(path))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            assert str(read(path)) == right  # without its last blanks
        except DamagedFile as error:
            assert name in str(error) and "remove it" in str(error)
    path.unlink()
    with pytest.raises(DamagedFile, match="is missing"):
        read(path)


def test_a_file_made_by_hand_is_taken_as_it_is(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_json(path, ["a"]) == {"a": 1}
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert torch.equal(read_tensors(tmp_path / "a.safetensors", ["a"])[0]["a"], torch.ones(2))
    with pytest.raises(DamagedFile, match="does not hold b"):
        read_json(path, ["a", "b"])
    with pytest.raises(DamagedFile, match="does not hold b"):
        read_tensors(tmp_path / "a.safetensors", ["b"])
    for text in ("[]", "null", "3"):
        path.write_text(text)
        with pytest.raises(DamagedFile, match="does not hold"):
            read_json(path, ["a"])


# Leftovers


def test_the_same_content_is_the_same_file(tmp_path):
    for name in range(12):
        write_tensors(tmp_path / str(name), {"b": torch.ones(2), "a": torch.ones(3)}, {"z": 1, "a": 2})
    assert len({(tmp_path / str(name)).read_bytes() for name in range(12)}) == 1


def test_a_sweep_takes_what_a_killed_writer_left_and_nothing_else(tmp_path):
    (tmp_path / ".a.json.abc.unfinished").write_text("half")
    (tmp_path / "notes.unfinished").write_text("mine")
    with atomic(tmp_path / "b.json") as temporary:
        sweep(tmp_path)
        assert names(tmp_path) == sorted([temporary.name, "notes.unfinished"])
        with alone(tmp_path):
            temporary.write_text("whole")
    assert names(tmp_path) == ["b.json", "notes.unfinished"] and (tmp_path / "b.json").read_text() == "whole"


# Full disks


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("File too large (os error 27)"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")])
def test_a_full_disk_is_one_sentence(tmp_path, error):
    with pytest.raises(InputError, match=r"a\.json: cannot be written \(.*\); make room") as caught:
        with atomic(tmp_path / "a.json"):
            raise error
    assert "\n" not in str(caught.value) and names(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("what a network says"), ConnectionResetError(104, "reset"), KeyError("a")])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, atomic(tmp_path / "a.json"):
        raise error
    assert caught.value is error
