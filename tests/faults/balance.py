"""The balance of a ledger: how many of the confirmed orders are where, and the row of the report that says so."""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.report import Row


@dataclass(frozen=True, slots=True)
class Balance:
    """How many of the confirmed orders are where in the end, each counted in one place.

    `astray`: those that are not where they belong, or at two places (such as handled, and a dead letter as well), or
    whose copies have another id than the first. `duplicated`: effects and dead letters beyond the one that is due.
    `unknown`: publishes without an answer. They may be stored, and are no part of `confirmed`. `missing`: the orders
    that are lost.
    """

    confirmed: int
    handled: int
    queued: int
    delayed: int
    dead: int
    astray: int
    duplicated: int
    unknown: int = 0
    missing: tuple[int, ...] = ()

    @property
    def lost(self) -> int:
        """Those that are nowhere."""
        return self.confirmed - self.handled - self.queued - self.delayed - self.dead

    @property
    def holds(self) -> bool:
        """Whether every confirmed order is at one place, and at the right one."""
        return self.lost == 0 and self.astray == 0

    def row(
        self,
        fault: str,
        repetitions: int,
        *,
        must: str = "lost 0",
        met: bool = True,
        recoveries: list[float] | None = None,
        note: str = "",
    ) -> Row:
        """Return the row of this fault; `met` is what must hold besides. `recoveries` are in seconds."""
        counts = [f"{self.handled:,} handled"]
        counts += [f"{number:,} {name}" for name in ("dead", "queued", "delayed") if (number := getattr(self, name))]
        account = f"{self.confirmed:,} confirmed = {' + '.join(counts)}"
        account += f"; lost are {', '.join(map(str, self.missing[:20]))}" * bool(self.missing)
        account += f"; {self.astray} not where they belong" * bool(self.astray)
        account += f"; {self.unknown} more without an answer" * bool(self.unknown)
        return Row(
            fault=fault,
            repetitions=repetitions,
            events=self.confirmed,
            lost=self.lost,
            duplicated=self.duplicated,
            worst_recovery=max(recoveries) if recoveries else None,
            must=must,
            met=self.holds and met,
            note="; ".join(filter(None, (account, note))),
        )
