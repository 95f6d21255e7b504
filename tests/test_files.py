"""Files appear whole or not at all."""

import json
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from nullrec_lib.files import atomic, write_json, write_tensors, write_text


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
    with pytest.raises(OSError):
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
    assert json.loads(text) == content and text.endswith("}\n") and "Müsli" in text


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
        assert not (handle.metadata() or {}).get("about")
    assert names(tmp_path) == ["plain.safetensors", "state.safetensors"]


def test_tensors_that_cannot_be_written_leave_the_old_file(tmp_path):
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"a": torch.zeros(2)})
    with pytest.raises(RuntimeError):
        write_tensors(path, {"a": torch.eye(3).to_sparse()})
    assert torch.equal(load_file(path)["a"], torch.zeros(2)) and names(tmp_path) == ["state.safetensors"]
