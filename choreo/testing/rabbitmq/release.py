"""A RabbitMQ release on this machine, or below the root folder of another filesystem, and how its programs are run."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from choreo.errors import ConfigurationError

INSTALL = (
    "install it (apt-get install rabbitmq-server; brew install rabbitmq), or unpack a generic-unix release"
    " and set RABBITMQ_HOME to its folder"
)
PLACES = (
    "usr/lib/rabbitmq/bin",
    "opt/rabbitmq*/sbin",
    "opt/homebrew/opt/rabbitmq/sbin",
    "usr/local/opt/rabbitmq/sbin",
    "home/linuxbrew/.linuxbrew/opt/rabbitmq/sbin",
)
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Into another root, with mounts that only this command sees and that end with it; the folder is at /mnt.
ENTER_ROOT = (
    'mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" && mount --bind "$1" "$0/mnt"'
    ' && root=$0 && shift && exec chroot "$root" "$@"'
)


def find_server(root: Path | None = None) -> Path | None:
    """The `rabbitmq-server` script of a release installed on this machine (or below `root`), or None.

    Looked for in RABBITMQ_HOME, on PATH, and where Debian, RPM, Homebrew and the official image have it.
    Debian's wrapper in /usr/sbin is passed over: it insists on root or rabbitmq and serves the system's node.
    """
    folders: list[Path] = []
    if root is None:
        home = os.environ.get("RABBITMQ_HOME")
        folders += [Path(home, "sbin")] if home else []
        folders += [Path(folder) for folder in os.get_exec_path() if folder]
    for place in PLACES:
        folders += sorted((root or Path("/")).glob(place), reverse=True)
    for folder in folders:
        server = (folder / "rabbitmq-server").resolve()
        if server.name == "rabbitmq-server" and os.access(server.with_name("rabbitmq-env"), os.R_OK):
            return server
    return None


@dataclass(frozen=True, slots=True)
class Release:
    """The release whose `rabbitmq-server` is `server`, which lies below `root` unless that is None."""

    server: Path
    root: Path | None

    @classmethod
    def find(cls, root: Path | None = None) -> Self:
        """The release of this machine, or below `root`. Raises ConfigurationError: there is none, or no way in."""
        server = find_server(root)
        if server is None:
            raise ConfigurationError(f"RabbitMQ was not found{f' below {root}' if root else ''}", INSTALL)
        if root is not None and (os.geteuid() != 0 or not shutil.which("unshare")):
            raise ConfigurationError(f"a node below {root} needs root and the program unshare")
        return cls(server, root and root.resolve())

    @property
    def plugins(self) -> list[str]:
        """The names of RabbitMQ's own plugins."""
        folder = self.server.parents[1] / "plugins"
        return sorted({path.name.partition("-")[0] for path in folder.glob("rabbitmq_*")})

    def command(self, directory: Path, program: str, *arguments: str) -> list[str]:
        """The command of a program (rabbitmq-server, rabbitmqctl, epmd) that works in `directory`."""
        path = self.server.with_name(program)
        if self.root is None:
            return [str(path) if path.exists() else program, *arguments]
        inside = f"/{path.relative_to(self.root)}" if path.exists() else program
        return ["unshare", "-m", "sh", "-c", ENTER_ROOT, str(self.root), str(directory), inside, *arguments]

    def environment(self, directory: Path) -> dict[str, str]:
        """The environment of such a command: nothing of ours is passed on, RABBITMQ_* least of all."""
        return {
            "HOME": str(self.folder(directory) / "home"),
            "PATH": SYSTEM_PATH if self.root else _search_path(),
            "LANG": "C.UTF-8",
        }

    def folder(self, directory: Path) -> Path:
        """Where the command sees `directory`."""
        return Path("/mnt") if self.root else directory


def _search_path() -> str:
    """PATH for a node of this machine, with Erlang's own folder: epmd is not always linked elsewhere."""
    path = f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}"
    erl = shutil.which("erl", path=path)
    return f"{path}:{Path(erl).resolve().parent}" if erl else path
