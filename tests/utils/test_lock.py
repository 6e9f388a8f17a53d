"""One run a folder at a time."""

import subprocess
import sys
import threading

import pytest

from lsvcr.utils.errors import UserError
from lsvcr.utils.lock import run_lock

HOLDER = """
import sys
from pathlib import Path
from lsvcr.utils.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("holds it", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_run_and_one_that_is_ending_is_waited_for(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"holds it\n"
    with pytest.raises(UserError, match="another run is training"), run_lock(tmp_path):
        pass
    threading.Timer(0.3, holder.kill).start()
    with run_lock(tmp_path):
        assert holder.wait(10) < 0
    for end in (holder.stdin, holder.stdout):
        end.close()
