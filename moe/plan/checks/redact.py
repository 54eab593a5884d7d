"""What a person may post of a checklist: without who they are and without what opens their accounts."""

from __future__ import annotations

import getpass
import re
from pathlib import Path

from moe.common.s3 import without_password


def redacted(text: str) -> str:
    """`text` without home folders, user names, and users and passwords in addresses."""
    text = without_password(text)
    home = str(Path.home())
    if home != "/":
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    text = re.sub(r"/(home|Users)/[^/\s:;,'\")\]]+", r"/\1/USER", text)
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return text
    return text if user == "root" else re.sub(rf"(?<!\w){re.escape(user)}(?!\w)", "USER", text)
