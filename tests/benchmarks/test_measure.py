"""What a benchmark has started ends with it."""

import signal
import subprocess
import sys
import time

LIVES = "import time; file = open({!r}, 'ab', 0)\nwhile True: file.write(b'.'); time.sleep(0.05)"


def test_the_program_ends_with_the_one_that_measures(tmp_path):
    signs = tmp_path / "signs"
    inner = LIVES.format(str(signs))
    outer = f"import sys; from benchmarks.measure import peak_rss; peak_rss([sys.executable, '-c', {inner!r}])"
    measuring = subprocess.Popen([sys.executable, "-c", outer])
    until = time.monotonic() + 60
    while not signs.exists() and time.monotonic() < until:
        time.sleep(0.05)
    measuring.send_signal(signal.SIGKILL)
    measuring.wait()
    seen = -1
    while seen != signs.stat().st_size and time.monotonic() < until:
        seen = signs.stat().st_size
        time.sleep(2)
    assert seen == signs.stat().st_size > 0
