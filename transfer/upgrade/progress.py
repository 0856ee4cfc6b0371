"""The checkpoint of stages that run on the controller's loop."""

import structlog

from lorebase.serving.errors import ConflictError, UnavailableError

from . import history
from .advance import RunStage
from .deps import Deps

_log = structlog.get_logger(__name__)


class Progress:
    """Writes progress to the catalog in steps. Never blocks: generation waits for leases itself.

    Args:
        deps: the world.
        upgrade_id: whose event it is.
        adapter: whose progress it is.
        run: the stage.
    """

    def __init__(self, deps: Deps, upgrade_id: str, adapter: str, run: RunStage) -> None:
        self._deps = deps
        self._upgrade_id = upgrade_id
        self._adapter = adapter
        self._run = run
        self._written = 0.0

    def __call__(self, progress: float) -> None:
        """Tells of progress, 0 to 1 within the stage."""
        if progress - self._written < self._deps.settings.progress_step or progress >= 1.0:
            return
        try:
            self._deps.append(
                self._upgrade_id,
                self._adapter,
                history.STAGE_PROGRESS,
                stage=self._run.stage,
                attempt=self._run.attempt,
                progress=round(progress, 3),
            )
        except (UnavailableError, ConflictError) as error:
            # For people only: no reason to throw the stage's work away. The next call writes it.
            _log.info("progress_not_written", run=self._run.key, error=str(error))
            return
        self._written = progress
