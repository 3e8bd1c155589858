"""Whose a file is, and who else may write it: what another user could change decides nothing here and is not run.

Trusted are the user who runs choreo, root, whoever installed this choreo (their code runs already), and for root under
sudo the user who called it. CHOREO_PROJECT is the user's own word for a folder: what is in it is taken as it is.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path
from typing import Final

from choreo.errors import ConfigurationError

VARIABLE: Final = "CHOREO_PROJECT"

_ROOT: Final = 0
_NOBODY: Final = 65534  # whoever has no number of his own in a user namespace: several users at once
_ACCESS_LIST: Final = "system.posix_acl_access"


def named() -> Path | None:
    """Return the project that CHOREO_PROJECT names. Raises ConfigurationError where it is not a folder."""
    written = os.environ.get(VARIABLE)
    if not written:
        return None
    path = Path(os.path.realpath(written))
    if not path.is_dir():
        raise ConfigurationError(f"{VARIABLE}={written!r:.200} is not a folder", "it names the folder of a project")
    return path


def require(path: Path, *, folder: Path | None = None, within: Path | None = None) -> None:
    """Raise ConfigurationError unless `path` is ours alone to write; `folder` is what to vouch for, else its own.

    Says nothing about a path that does not exist. `within`: its folder, which was looked at before.
    """
    why = doubt(path, within=within)
    if why is not None:
        raise ConfigurationError(
            f"{path} is not used: {why}",
            f"if you trust all that is in it, say so: {VARIABLE}={folder or path.parent}",
        )


def require_tree(top: Path, suffixes: tuple[str, ...], *, folder: Path) -> None:
    """Raise ConfigurationError unless `top` is ours alone to write, with all packages and files of code below."""
    require(top, folder=folder)
    for where, folders, files in os.walk(top):
        folders[:] = [each for each in folders if each.isidentifier()]  # others are no packages, such as .venv
        for name in (*folders, *(each for each in files if each.endswith(suffixes))):
            require(Path(where, name), folder=folder, within=Path(where))


def doubt(path: Path, *, within: Path | None = None) -> str | None:
    """Return why `path` is not ours alone to write, None where it is, or does not exist, or is vouched for."""
    real = Path(os.path.realpath(path))
    if _is_vouched(real):
        return None
    trusted = _trusted()
    folders = () if within is not None and not path.is_symlink() else real.parents
    for each in (real, *folders):
        try:
            found = each.stat()
        except OSError:
            continue  # not there, or not for us to see: then there is nothing to take
        what = "it" if each == real else str(each)
        if found.st_uid not in trusted:
            return f"{what} belongs to {_user(found.st_uid)}, and choreo runs as {_user(os.geteuid())}"
        # A sticky folder, such as /tmp, keeps others from replacing what is in it; not from adding to it.
        if (who := _other_writers(each, found)) and (each == real or not found.st_mode & stat.S_ISVTX):
            return f"{what} can be written by {who}"
    return None


def is_ours(path: Path, found: os.stat_result) -> bool:
    """Say whether an open file of this status belongs to somebody whom we trust, and others cannot even read it."""
    return _is_vouched(Path(os.path.realpath(path))) or (
        found.st_uid in _trusted() and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    )


def _is_vouched(real: Path) -> bool:
    vouched = named()
    return vouched is not None and real.is_relative_to(vouched)


def _trusted() -> set[int]:
    user = os.geteuid()
    trusted = {user, _ROOT}
    installer = Path(__file__).stat().st_uid
    if installer != _NOBODY:
        trusted.add(installer)
    caller = os.environ.get("SUDO_UID", "")
    if user == _ROOT and caller.isdecimal() and caller.isascii():
        trusted.add(int(caller))
    return trusted


def _other_writers(path: Path, found: os.stat_result) -> str | None:
    """Say who besides the owner may write `path`."""
    if found.st_mode & stat.S_IWOTH:
        return "everybody"
    if found.st_mode & stat.S_IWGRP and not _is_private(path, found):
        return f"the group {_group(found.st_gid)}"
    return None


def _is_private(path: Path, found: os.stat_result) -> bool:
    """Say whether the group is root's, or has no other member than the owner, as a user's own group on most systems."""
    getxattr = getattr(os, "getxattr", None)
    if getxattr is not None:
        try:
            getxattr(path, _ACCESS_LIST)
        except OSError:
            pass
        else:
            return False  # the group's bits are the mask of a list that may name anybody
    if found.st_gid == _ROOT:
        return True
    try:
        owner = pwd.getpwuid(found.st_uid)
        members = grp.getgrgid(found.st_gid).gr_mem
    except KeyError:
        return False
    return not {*members} - {owner.pw_name} and {
        each.pw_uid for each in pwd.getpwall() if each.pw_gid == found.st_gid
    } <= {owner.pw_uid}


def _user(number: int) -> str:
    try:
        return f"{pwd.getpwuid(number).pw_name} (uid {number})"
    except KeyError:
        return f"uid {number}"


def _group(number: int) -> str:
    try:
        return f"{grp.getgrgid(number).gr_name} (gid {number})"
    except KeyError:
        return f"gid {number}"
