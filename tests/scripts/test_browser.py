"""scripts/browser.sh with make-believe tools: when it installs a browser, and that it never fails."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.guards.source import ROOT

CI = {"CI": "true"}
TOOLS = ("bash", "timeout", "mktemp", "tail", "rm")
APT_GET = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$CALLS"
if [ -n "${APT_SAYS:-}" ]; then echo "$APT_SAYS" >&2; exit 100; fi
"""
ROOT_USER = "#!/usr/bin/env bash\necho 0\n"
OTHER_USER = "#!/usr/bin/env bash\necho 1000\n"
DEBIAN = '#!/usr/bin/env bash\n[ "$*" = "-qx ID=debian /etc/os-release" ]\n'
NOTHING_FOUND = "#!/usr/bin/env bash\nexit 1\n"


class Machine:
    """A PATH with chosen tools: Debian, root and apt-get, no browser."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.calls = folder / "bin", folder / "calls"
        self.bin.mkdir()
        for name in TOOLS:
            found = shutil.which(name)
            assert found, name
            (self.bin / name).symlink_to(found)
        for name, text in (("apt-get", APT_GET), ("id", ROOT_USER), ("grep", DEBIAN)):
            self.tool(name, text)

    def tool(self, name: str, text: str) -> None:
        """Put a program of this name into PATH."""
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def provide(self, **environment: str) -> tuple[str, list[str]]:
        """Run the script, which must end well: what it said, and what apt-get was asked."""
        self.calls.write_text("")
        done = subprocess.run(
            ["bash", str(ROOT / "scripts" / "browser.sh")],
            capture_output=True,
            text=True,
            env={"PATH": str(self.bin), "CALLS": str(self.calls), **environment},
        )
        assert done.returncode == 0 and done.stderr == ""
        return done.stdout, self.calls.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("switch", [CI, {"LSVCR_INSTALL_BROWSER": "1"}])
def test_it_installs_chromium_where_it_may(machine, switch):
    said, asked = machine.provide(**switch)
    assert said.startswith("== chromium") and said.count("\n") == 1
    assert [words.split()[-1] for words in asked] == ["update", "chromium"]
    assert "install -y --no-install-recommends chromium" in asked[1]


def test_a_browser_that_is_there_is_enough(machine):
    assert machine.provide(LSVCR_BROWSER="/somewhere/browser", **CI) == ("", [])
    machine.tool("google-chrome", "")
    assert machine.provide(**CI) == ("", [])


@pytest.mark.parametrize("name, text", [("id", OTHER_USER), ("grep", NOTHING_FOUND), ("apt-get", None)])
def test_it_asks_for_no_rights_and_no_other_system(machine, name, text):
    (machine.bin / name).unlink()
    if text:
        machine.tool(name, text)
    assert machine.provide(**CI) == ("", [])


@pytest.mark.parametrize("switch", [{}, {"CI": "false"}, {"LSVCR_INSTALL_BROWSER": "0"}])
def test_it_installs_nothing_unasked(machine, switch):
    assert machine.provide(**switch) == ("", [])


def test_a_failure_is_told_and_stops_nothing(machine):
    said, asked = machine.provide(APT_SAYS="E: no network", **CI)
    assert "tests that need a browser are skipped" in said and said.endswith("E: no network\n")
    assert len(asked) == 1


def test_test_sh_calls_it_before_the_tests():
    text = (ROOT / "scripts" / "test.sh").read_text()
    assert text.index('scripts/browser.sh"') < text.index("pytest -n")
