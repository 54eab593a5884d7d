"""A callback whose state takes SLOW_SAVE seconds to save on rank 0, once the file `slow-now` is there."""

import os
import time
from pathlib import Path
from typing import Any

from composer import Callback


class Slow(Callback):
    def state_dict(self) -> dict[str, Any]:
        if os.environ.get("RANK", "0") == "0" and Path(os.environ["SLOW_FILE"]).exists():
            time.sleep(float(os.environ["SLOW_SAVE"]))
        return {}
