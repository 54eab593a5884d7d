"""Files are looked at while the units of those before them are converted."""

from __future__ import annotations

import threading
import time

from moe.data.text.planning import Planning

MOST_AHEAD = 512  # units that wait for the work


class Ahead:
    """Looks at all files that `planning` has not seen, in a thread, while its units are converted; at most MOST_AHEAD
    units further than those, as a hub may count both's requests.

    taken: how many of the units have been.
    """

    def __init__(self, planning: Planning) -> None:
        self._planning, self.taken, self._stopped = planning, 0, False
        self._bytes = sum(file.size for i, file in enumerate(planning.files) if planning.is_wanted(i))
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._plan, daemon=True)

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True

    def _plan(self) -> None:
        try:
            for _ in self._planning.one_by_one():
                while not self._stopped and len(self._planning.units) > self.taken + MOST_AHEAD:
                    time.sleep(0.1)
                if self._stopped:
                    return
        except BaseException as error:
            self._error = error

    def is_complete(self) -> bool:
        """Whether all units are there. Raises what planning has raised."""
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    def weight(self) -> int:
        """Of all units there will be, by the bytes of the files whose units are known."""
        seen = self._planning.looked_at_bytes
        return round(self._planning.weight * self._bytes / seen) if seen else self._bytes
