"""Real crashes, endless loops and allocations: each loses its own image and no other."""

import io
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import PIL.Image
import pytest

from pipeline.images.decode import BadImage
from pipeline.images.decode import Config as DecodeConfig
from pipeline.images.process import Config, Processed, process
from pipeline.images.sandbox import Limits, Sandbox
from pipeline.images.sandbox_child import pack_outcome, unpack_outcome

DECODER = """
import os, signal, time
from pathlib import Path
import numpy as np
from pipeline.images.process import Processed
from pipeline.images.resize import scale

def decode(image, log):
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {image.decode()}\\n")
    if image == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if image == b"abort":
        os.abort()
    if image == b"leave":
        os._exit(3)
    if image == b"loop":
        while True:
            pass
    if image == b"sleep":
        time.sleep(3600)
    if image == b"compute":
        until = time.thread_time() + 0.5
        while time.thread_time() < until:
            pass
    if image == b"allocate":
        held = []
        while True:
            held.append(bytes(10_000_000))
    if image == b"scale":
        scale(np.zeros((4000, 4000, 3), np.uint8), (100, 100))
    if image == b"once" and Path(log).read_text().count("once") == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if image == b"raise":
        raise ValueError("odd\\nimage")
    return Processed(image.upper(), len(image), 1)
"""


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """`sandbox()`: over a decoder that does what an image says, and notes what it was given."""
    (tmp_path / "obedient_decoder.py").write_text(DECODER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    from obedient_decoder import decode

    opened = []

    def make(seconds=0.3):
        function = partial(decode, log=str(tmp_path / "log"))
        opened.append(Sandbox(function, Limits(seconds, memory_mib=64)))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
    sys.modules.pop("obedient_decoder")


def good(image):
    return Processed(image.upper(), len(image), 1)


@pytest.mark.parametrize(
    ("poison", "reason", "detail"),
    [
        (b"crash", "decoder_crashed", "SIGSEGV"),
        (b"abort", "decoder_crashed", "SIGABRT"),
        (b"leave", "decoder_crashed", "exit code 3"),
        (b"loop", "too_slow", "CPU time above images.decode.time_limit_seconds=0.3"),
        (b"allocate", "out_of_memory", "memory above images.decode.memory_mib=64"),
        (b"scale", "out_of_memory", "memory above images.decode.memory_mib=64"),
        (b"raise", "decoder_crashed", "ValueError: odd image"),
    ],
)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_one_image_is_lost_and_the_others_are_processed_once(
    sandbox, tmp_path, poison, reason, detail, place
):
    images = [b"a", b"bb", b"ccc", b"dddd"]
    images.insert(place, poison)
    expected = [good(image) for image in images]
    expected[place] = ("decode", BadImage(reason, detail))
    assert sandbox().map(images) == expected
    given = [line.split()[1].encode() for line in (tmp_path / "log").read_text().splitlines()]
    tried_again = [] if poison == b"raise" else [poison]
    assert given == [*images[: place + 1], *tried_again, *images[place + 1 :]]


def test_all_kinds_in_one_batch_and_the_next_batch(sandbox):
    one = sandbox()
    outcomes = one.map([b"loop", b"crash", b"a", b"allocate", b"crash"])
    reasons = [each[1].reason if isinstance(each, tuple) else each.encoded for each in outcomes]
    assert reasons == ["too_slow", "decoder_crashed", b"A", "out_of_memory", "decoder_crashed"]
    assert one.map([b"b"]) == [good(b"b")]
    assert one.map([]) == []


def test_what_fails_once_passes_alone(sandbox):
    assert sandbox().map([b"a", b"once", b"b"]) == [good(b"a"), good(b"once"), good(b"b")]


def test_one_child_serves_many_batches(sandbox, tmp_path):
    one = sandbox()
    for _ in range(3):
        one.map([b"a", b"b"])
    assert len({line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}) == 1


def test_a_child_that_waits_for_ever_is_ended(sandbox):
    outcomes = sandbox(seconds=0.02).map([b"sleep", b"a"])
    assert outcomes[0][1] == BadImage("too_slow", "no answer and no CPU time used up in 0.2 s")
    assert outcomes[1] == good(b"a")


@pytest.mark.skipif(not Path("/proc").exists(), reason="tells by /proc whether a process sleeps")
def test_a_child_that_computes_is_waited_for(sandbox, monkeypatch):
    """However long that takes by the clock, as on a loaded machine."""
    monkeypatch.setattr("pipeline.images.sandbox.STALL_FACTOR", 0.025)
    one, looks = sandbox(seconds=2), []
    look = one._asleep
    monkeypatch.setattr(one, "_asleep", lambda: looks.append(look()))
    assert one.map([b"compute"]) == [good(b"compute")]
    assert len(looks) > 3
    assert looks.count(None) > len(looks) / 2


def test_the_child_dies_with_its_parent(tmp_path):
    """Also in the middle of an image."""
    (tmp_path / "slow_decoder.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "def decode(image):\n"
        "    Path(image.decode()).write_text('begun')\n"
        "    time.sleep(3600)\n"
    )
    begun = tmp_path / "begun"
    (tmp_path / "parent.py").write_text(
        "import sys, threading, time\n"
        "from pathlib import Path\n"
        "from slow_decoder import decode\n"
        "from pipeline.images.sandbox import Limits, Sandbox\n"
        "box = Sandbox(decode, Limits(60, 64))\n"
        "threading.Thread(target=box.map, args=([sys.argv[1].encode()],), daemon=True).start()\n"
        "while not Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
        "print(box._child.pid, flush=True)\n"
        "time.sleep(3600)\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}:."}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(begun)], env=env, stdout=subprocess.PIPE
    ) as parent:
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
    end = time.monotonic() + 60  # it looks for its parent twice a second
    while is_alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_alive(child)


def is_alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        return status.rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_that_cannot_start_is_an_error_and_no_reject(sandbox, monkeypatch):
    one = sandbox()
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended at its start with 1"):
        one.map([b"a"])


def test_the_outcome_is_that_of_the_kernel():
    images = [b"", b"no image", encoded((300, 400)), encoded((20, 10))[:200], encoded((20, 10))]
    config = Config()
    box = Sandbox(partial(process, config=config), Limits(30, 512))
    assert box.map([memoryview(image) for image in images]) == [process(i, config) for i in images]
    box.close()


def test_limits_meet_real_images():
    """A small file of many pixels: its memory, then its time; the images around it pass."""
    bomb = encoded((9000, 9000), format="PNG")
    small = encoded((30, 20))
    config = Config(decode=DecodeConfig(memory_mib=100))
    box = Sandbox(partial(process, config=config), Limits(30, 100))
    outcomes = box.map([small, bomb, small])
    assert outcomes[1][1].reason == "out_of_memory"
    assert outcomes[0] == outcomes[2] == process(small, config)
    box.close()
    box = Sandbox(partial(process, config=config), Limits(0.05, 2048))
    assert box.map([bomb])[0][1].reason == "too_slow"
    box.close()


def encoded(size, format="JPEG"):
    file = io.BytesIO()
    PIL.Image.new("RGB", size, (10, 200, 30)).save(file, format)
    return file.getvalue()


@pytest.mark.parametrize(
    "outcome",
    [Processed(b"", 1, 2), Processed(b"\n{}\n\x00", 3, 4), ("filter", BadImage("é\n", "\n"))],
)
def test_outcomes_travel(outcome):
    assert unpack_outcome(pack_outcome(outcome)) == outcome


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"memory_mib": 15}, "memory_mib: 15; at least 16"),
        ({"time_limit_seconds": 0.0}, "time_limit_seconds: 0"),
        ({"time_limit_seconds": float("inf")}, "time_limit_seconds: inf"),
    ],
)
def test_mistakes(limits, message):
    with pytest.raises(ValueError, match=message):
        DecodeConfig(**limits)
