"""The client's calls of UpgradeService; part of LorebaseClient."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import grpc

from lorebase.v1 import upgrade_pb2, upgrade_pb2_grpc

SETTLED_STATES = frozenset(
    {
        upgrade_pb2.UPGRADE_STATE_COMPLETED,
        upgrade_pb2.UPGRADE_STATE_FINISHED,
        upgrade_pb2.UPGRADE_STATE_ABORTED,
        upgrade_pb2.UPGRADE_STATE_ROLLED_BACK,
        upgrade_pb2.UPGRADE_STATE_FAILED,
    }
)
"""States in which no migration runs, so a watch ends. Two of them are left when an operator asks:
COMPLETED by promote, resume, rollback and finish, FAILED by resume."""


class UpgradeCalls:
    """Upgrade calls over a channel that the subclass opens before calling `__init__`."""

    channel: grpc.Channel
    timeout_s: float
    _errors: Callable[[], AbstractContextManager[None]]

    def __init__(self) -> None:
        super().__init__()
        self._upgrades = upgrade_pb2_grpc.UpgradeServiceStub(self.channel)

    def plan_upgrade(
        self, to_base: str, adapters: Sequence[str] = ()
    ) -> upgrade_pb2.PlanUpgradeResponse:
        """Returns what an upgrade would do, adapter by adapter; changes nothing."""
        request = upgrade_pb2.PlanUpgradeRequest(to_base=to_base, adapters=adapters)
        with self._errors():
            return self._upgrades.PlanUpgrade(request, timeout=self.timeout_s)

    def start_upgrade(
        self, to_base: str, adapters: Sequence[str] = (), *, request_id: str = ""
    ) -> upgrade_pb2.Upgrade:
        """Starts an upgrade; no adapters means all of the current base."""
        request = upgrade_pb2.StartUpgradeRequest(
            to_base=to_base, adapters=adapters, request_id=request_id
        )
        with self._errors():
            return self._upgrades.StartUpgrade(request, timeout=self.timeout_s).upgrade

    def get_upgrade(self, upgrade_id: str = "") -> upgrade_pb2.Upgrade:
        """Returns an upgrade; the newest if no id is given."""
        request = upgrade_pb2.GetUpgradeRequest(id=upgrade_id)
        with self._errors():
            return self._upgrades.GetUpgrade(request, timeout=self.timeout_s).upgrade

    def list_upgrades(self) -> list[upgrade_pb2.Upgrade]:
        """Lists all upgrades."""
        upgrades: list[upgrade_pb2.Upgrade] = []
        token = ""
        while True:
            request = upgrade_pb2.ListUpgradesRequest(page_size=100, page_token=token)
            with self._errors():
                response = self._upgrades.ListUpgrades(request, timeout=self.timeout_s)
            upgrades += response.upgrades
            token = response.next_page_token
            if not token:
                return upgrades

    def watch_upgrade(
        self, upgrade_id: str = "", *, timeout_s: float | None = None
    ) -> Iterator[upgrade_pb2.Upgrade]:
        """Yields the upgrade whenever it changes, until it is in one of `SETTLED_STATES`.

        Args:
            upgrade_id: empty means the newest.
            timeout_s: ends with DeadlineExceededError after so many seconds; None never does.
        """
        request = upgrade_pb2.WatchUpgradeRequest(id=upgrade_id)
        with self._errors():
            call = self._upgrades.WatchUpgrade(request, timeout=timeout_s)
            try:
                for response in call:
                    yield response.upgrade
            finally:
                call.cancel()  # type: ignore[no-untyped-call]

    def pause_upgrade(self, upgrade_id: str = "") -> upgrade_pb2.Upgrade:
        """Stops background work at the next safe point; serving goes on."""
        request = upgrade_pb2.PauseUpgradeRequest(id=upgrade_id)
        return self._command(self._upgrades.PauseUpgrade, request)

    def resume_upgrade(self, upgrade_id: str = "") -> upgrade_pb2.Upgrade:
        """Goes on with a paused or failed upgrade."""
        request = upgrade_pb2.ResumeUpgradeRequest(id=upgrade_id)
        return self._command(self._upgrades.ResumeUpgrade, request)

    def promote_upgrade(
        self, upgrade_id: str = "", adapters: Sequence[str] = ()
    ) -> upgrade_pb2.Upgrade:
        """Routes adapters to their shadow versions although the gate did not say so."""
        request = upgrade_pb2.PromoteUpgradeRequest(id=upgrade_id, adapters=adapters)
        return self._command(self._upgrades.PromoteUpgrade, request)

    def rollback_upgrade(
        self, upgrade_id: str = "", adapters: Sequence[str] = ()
    ) -> upgrade_pb2.Upgrade:
        """Moves routes back to the old base at once; no adapters means every promoted one."""
        request = upgrade_pb2.RollbackUpgradeRequest(id=upgrade_id, adapters=adapters)
        return self._command(self._upgrades.RollbackUpgrade, request)

    def abort_upgrade(self, upgrade_id: str = "") -> upgrade_pb2.Upgrade:
        """Stops the upgrade; what is promoted stays promoted."""
        request = upgrade_pb2.AbortUpgradeRequest(id=upgrade_id)
        return self._command(self._upgrades.AbortUpgrade, request)

    def finish_upgrade(self, upgrade_id: str = "") -> upgrade_pb2.Upgrade:
        """Ends the rollback window and retires the old base if nothing is routed to it."""
        request = upgrade_pb2.FinishUpgradeRequest(id=upgrade_id)
        return self._command(self._upgrades.FinishUpgrade, request)

    def _command(self, call: Callable[..., Any], request: Any) -> upgrade_pb2.Upgrade:
        with self._errors():
            upgrade: upgrade_pb2.Upgrade = call(request, timeout=self.timeout_s).upgrade
            return upgrade
