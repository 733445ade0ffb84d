"""What hornbook refuses to work under."""

import os

from pipeline.system.errors import UserError

UNSAFE_SWITCH = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def refuse_unsafe_loading() -> None:
    """Raises `UserError` where the environment would let `torch.load` run code out of a file."""
    if os.environ.get(UNSAFE_SWITCH, "").strip().lower() not in ("", "0", "n", "no", "false"):
        raise UserError(
            f"{UNSAFE_SWITCH}={os.environ[UNSAFE_SWITCH]} is set: a checkpoint could then run code when it is loaded; "
            f"unset {UNSAFE_SWITCH}"
        )
