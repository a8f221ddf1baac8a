"""Sets of files that several processes write, or that a killed process was writing."""

import hashlib
import os
import signal
import tempfile
import threading
import time

import paddle
import pytest
import yaml
from interrupted import interrupted, race
from paddle import nn
from paddle.static import InputSpec

import paddleq
from paddleq import _atomic_write
from paddleq._atomic_write import temporary_folder, write_bytes, write_together
from paddleq.errors import ExportError, FormatError
from paddleq.export.provenance_file import Provenance, check_files
from paddleq.export.trace import trace_float

SPEC = [InputSpec([None, 4], "float32", "x")]


def program(value):
    """Program of a Linear whose parameters all have one value."""
    with paddle.utils.unique_name.guard():
        net = nn.Sequential(nn.Linear(4, 3))
    for tensor in net.parameters():
        tensor.set_value(paddle.full_like(tensor, value))
    return trace_float(net, SPEC)


def writer(path, value, times=1):
    made = program(value)

    def write():
        for _ in range(times):
            made.save(f"{path}.pdmodel", f"{path}.pdiparams",
                      Provenance("pdmodel", made, value=value))
    return write


def value_of(path):
    """Return the value in the files at a prefix, after a check that they are of one export."""
    check_files(f"{path}.pdmodel", f"{path}.pdiparams")
    with open(f"{path}.paddleq.yaml", encoding="utf-8") as file:
        (entry,) = yaml.safe_load(file)["exports"]
    folder = os.path.dirname(path)
    for name, digest in entry["files"].items():
        with open(os.path.join(folder, name), "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == digest
    found = {float(array.reshape(-1)[0])
             for array in paddleq.SavedModel(path).parameter_arrays().values()}
    assert found == {entry["value"]}
    return entry["value"]


def files(folder):
    return sorted(os.listdir(folder))


SET = ["m.paddleq.yaml", "m.pdiparams", "m.pdmodel"]


def run_races(path, count):
    writers = [writer(path, value) for value in (1.0, 2.0)]
    winners = []
    for _ in range(count):
        race(*writers)
        winners.append(value_of(path))
        assert files(os.path.dirname(path)) == SET
    return winners


def test_two_processes_that_write_one_prefix_leave_the_files_of_one(tmp_path):
    run_races(str(tmp_path / "m"), 6)


@pytest.mark.nightly
def test_150_races_leave_no_torn_set(tmp_path):
    assert set(run_races(str(tmp_path / "m"), 150)) == {1.0, 2.0}


def test_a_reader_during_races_gets_the_files_of_one_writer_or_an_error(tmp_path):
    path = str(tmp_path / "m")
    writer(path, 1.0)()
    writers = [writer(path, value, times=20) for value in (1.0, 2.0)]
    running = threading.Thread(target=race, args=writers)
    running.start()
    read = refused = 0
    while running.is_alive():
        try:
            arrays = paddleq.SavedModel(path).parameter_arrays().values()
            assert len({float(array.reshape(-1)[0]) for array in arrays}) == 1
            read += 1
        except FormatError as error:
            assert "torn" in str(error)
            refused += 1
    running.join()
    assert read > 0
    assert value_of(path) in (1.0, 2.0)


def test_threads_exclude_each_other(tmp_path):
    inside, most = [], []

    def write(beside):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        write_bytes(b"x")(beside)

    threads = [threading.Thread(target=write_together, args=({str(tmp_path / "m"): write},))
               for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6 and files(tmp_path) == ["m"]


def test_prefixes_are_independent(tmp_path):
    """One that is being written does not delay another of the same folder."""
    write_together({str(tmp_path / "a.txt"): lambda beside: (
        write_together({str(tmp_path / "b.txt"): write_bytes(b"b")}), write_bytes(b"a")(beside))})
    assert files(tmp_path) == ["a.txt", "b.txt"]


def test_waiting_for_another_writer_ends_with_an_error(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(_atomic_write, "_SECONDS", 0.3)
    monkeypatch.setattr(_atomic_write, "_NOTICE", 0.1)
    save = writer(str(tmp_path / "m"), 1.0)

    def while_it_is_locked(beside):
        with pytest.raises(ExportError, match="another process"):
            save()
        write_bytes(b"")(beside)

    write_together({str(tmp_path / "m.pdmodel"): while_it_is_locked})
    assert "waiting for another process" in caplog.text
    save()
    assert value_of(str(tmp_path / "m")) == 1.0


@pytest.mark.parametrize("why", ["no fcntl", "no locks"])
def test_file_systems_without_locks(why, tmp_path, monkeypatch):
    if why == "no fcntl":
        monkeypatch.setattr(_atomic_write, "fcntl", None)
    else:
        def refuse(*_):
            raise OSError(38, "Function not implemented")
        monkeypatch.setattr(_atomic_write.fcntl, "flock", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    writer(str(tmp_path / "m"), 1.0)()
    assert files(tmp_path) == SET


@pytest.mark.parametrize("name", [signal.SIGKILL, signal.SIGTERM])
def test_an_export_removes_the_folders_of_killed_ones(name, tmp_path, monkeypatch):
    temporary, out = tmp_path / "tmp", tmp_path / "out"
    temporary.mkdir()
    out.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    net = nn.Sequential(nn.Linear(4, 3))

    def export():
        trace_float(net, SPEC).save(
            str(out / "m.pdmodel"), str(out / "m.pdiparams"), Provenance("pdmodel"))

    moments, left = 0, 0
    while interrupted(export, moments, name=name):
        left += len([each for each in [*files(temporary), *files(out)]
                     if each.startswith((".paddleq-", "paddleq-"))])
        if moments % 3 == 2:
            export()
            assert files(temporary) == [] and files(out) == SET
        moments += 1
    export()
    assert moments >= 5 and left >= 5
    assert files(temporary) == [] and files(out) == SET


def end_in_a_folder():
    with temporary_folder():
        os._exit(0)


def test_a_folder_in_use_is_not_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder() as first, temporary_folder() as second:
        assert first != second and os.path.isdir(first)
        race(end_in_a_folder)
        assert os.path.isdir(first) and os.path.isdir(second)
        assert len(files(tmp_path)) == 3
        with temporary_folder():
            assert len(files(tmp_path)) == 3
    assert files(tmp_path) == []


def test_an_empty_folder_without_a_lock_is_removed_when_it_is_old(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("paddleq-old", "paddleq-new", "paddleq-full", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "paddleq-full" / "file").touch()
    for name in ("paddleq-old", "paddleq-full", "other"):
        os.utime(tmp_path / name, (0, 0))
    with temporary_folder():
        pass
    assert files(tmp_path) == ["other", "paddleq-full", "paddleq-new"]
