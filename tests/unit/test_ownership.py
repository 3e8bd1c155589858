"""Another user's files decide nothing and are not run: whose a project, a .env file and an agents folder have to be."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from choreo.config import ownership
from choreo.config.settings import load
from choreo.errors import ConfigurationError
from choreo.loader import load_all

MALLORY = 64123  # a number that nobody has
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture(autouse=True)
def imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what a test imported; no variable of the caller's counts."""
    for name in [name for name in os.environ if name.startswith(("CHOREO_", "SUDO_"))]:
        monkeypatch.delenv(name)
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if not name.startswith("choreo"):
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one agent, which says in a file that it was imported. It is the working folder."""
    shop = tmp_path / "shop"
    (shop / "crew" / "parts").mkdir(parents=True)
    (shop / "pyproject.toml").write_text('[tool.choreo]\nagents = "crew"\n')
    (shop / ".env").write_text("CHOREO_PREFETCH=7\n")
    (shop / "crew" / "__init__.py").touch()
    (shop / "crew" / "parts" / "money.py").write_text("")
    (shop / "crew" / "payment.py").write_text(
        "from pathlib import Path\n"
        "from choreo import Agent\n"
        "Path(__file__).parents[1].joinpath('imported').touch()\n"
        "agent = Agent('payment')\n"
    )
    for each in (shop, *shop.rglob("*")):
        each.chmod(0o755 if each.is_dir() else 0o644)
    monkeypatch.chdir(shop)
    return shop


def take() -> None:
    """Do what `choreo check` does at its start."""
    load_all(load().agents_folder)


PARTS = (".", "pyproject.toml", ".env", "crew", "crew/payment.py", "crew/parts", "crew/parts/money.py")


def test_what_is_ours_is_taken(shop: Path):
    take()
    assert (shop / "imported").exists()


@ONLY_ROOT
@pytest.mark.parametrize("part", PARTS)
def test_what_belongs_to_another_user_is_refused(part: str, shop: Path):
    """Each part of a project: nothing of it is imported, and the error names the path, its owner and the way out."""
    os.chown(shop / part, MALLORY, -1)

    with pytest.raises(ConfigurationError) as raised:
        take()

    assert not (shop / "imported").exists()
    assert raised.value.message.startswith(str(shop / part if part != "." else shop))
    assert f"belongs to uid {MALLORY}, and choreo runs as root (uid 0)" in raised.value.message
    assert raised.value.way_out.endswith(f"CHOREO_PROJECT={shop}")
    assert raised.value.exit_code == 78


@pytest.mark.parametrize("mode", [0o777, 0o1777])
@pytest.mark.parametrize("part", PARTS)
def test_what_everybody_may_write_is_refused(part: str, mode: int, shop: Path):
    """A sticky folder too: others can add files to it, and what is in it would be imported."""
    (shop / part).chmod(mode)

    with pytest.raises(ConfigurationError, match="can be written by everybody"):
        take()

    assert not (shop / "imported").exists()


@pytest.mark.parametrize("part", PARTS)
def test_the_users_word_for_a_project_is_enough(part: str, shop: Path, monkeypatch: pytest.MonkeyPatch):
    """CHOREO_PROJECT, as in a container whose volume belongs to a number of the host."""
    (shop / part).chmod(0o777)
    if os.geteuid() == 0:
        os.chown(shop / part, MALLORY, -1)
    monkeypatch.setenv("CHOREO_PROJECT", str(shop))

    take()

    assert (shop / "imported").exists()


def test_a_project_is_not_taken_from_a_folder_of_everybody(shop: Path, monkeypatch: pytest.MonkeyPatch):
    """The planted pyproject.toml of a world-writable folder above is refused by name, not passed over."""
    above = shop.parent / "everybody"
    (above / "mine").mkdir(parents=True)
    (above / "pyproject.toml").write_text('[tool.choreo]\nagents = "crew"\n')
    above.chmod(0o1777)
    monkeypatch.chdir(above / "mine")

    with pytest.raises(ConfigurationError, match=rf"{above} is not used: it can be written by everybody"):
        load()


def test_a_sticky_folder_above_does_no_harm(shop: Path):
    """A project of our own below /tmp is ours: others cannot replace it there. Without the bit they can."""
    shop.parent.chmod(0o1777)
    take()

    shop.parent.chmod(0o777)
    with pytest.raises(ConfigurationError, match=rf"{shop.parent} can be written by everybody"):
        load()


def test_a_link_is_judged_by_where_it_leads(shop: Path):
    elsewhere = shop.parent / "elsewhere"
    (shop / "crew").rename(elsewhere)
    (shop / "crew").symlink_to(elsewhere)
    elsewhere.chmod(0o777)

    with pytest.raises(ConfigurationError, match=r"crew is not used: it can be written by everybody"):
        take()


@ONLY_ROOT
def test_a_group_counts_unless_it_is_the_owners_own(shop: Path, monkeypatch: pytest.MonkeyPatch):
    """With umask 002 and a group for each user, a file that its group may write is still the user's alone."""
    ann = pwd.struct_passwd(("ann", "x", MALLORY, MALLORY, "", "/home/ann", "/bin/sh"))
    members: list[str] = []
    monkeypatch.setattr(os, "geteuid", lambda: MALLORY)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: ann)
    monkeypatch.setattr(pwd, "getpwall", lambda: [ann])
    monkeypatch.setattr(grp, "getgrgid", lambda number: grp.struct_group(("ann", "x", MALLORY, members)))
    file = shop / "crew" / "payment.py"
    os.chown(file, MALLORY, MALLORY)
    file.chmod(0o664)
    assert ownership.doubt(file) is None

    members.append("bob")
    assert ownership.doubt(file) == f"it can be written by the group ann (gid {MALLORY})"


@ONLY_ROOT
def test_root_under_sudo_takes_what_its_caller_owns(shop: Path, monkeypatch: pytest.MonkeyPatch):
    for each in (shop, *shop.rglob("*")):
        os.chown(each, MALLORY, MALLORY)
    with pytest.raises(ConfigurationError):
        take()

    monkeypatch.setenv("SUDO_UID", str(MALLORY))
    take()


@ONLY_ROOT
def test_an_ordinary_user_takes_roots_files_and_nobody_elses(tmp_path: Path):
    """As a service does whose files are root's. SUDO_UID is anybody's word there, and counts for nothing."""
    program = """
        import os, sys
        from pathlib import Path
        from choreo.config import ownership
        os.environ["SUDO_UID"] = "64124"
        os.setgroups([]); os.setgid(64123); os.setuid(64123)
        print(*[ownership.doubt(Path(each)) is None for each in sys.argv[1:]])
    """
    folder = tmp_path / "shop"
    folder.mkdir()
    for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        above.chmod(0o755)
    owners = (0, MALLORY, MALLORY + 1)
    files = [folder / str(owner) for owner in owners]
    for file, owner in zip(files, owners, strict=True):
        file.touch(mode=0o644)
        os.chown(file, owner, owner)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, files)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.split() == ["True", "True", "False"]
