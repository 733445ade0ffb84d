"""`HORNBOOK_REMOTE`: copies of folders at a URL, so that a run outlives its disk.

`store` is what a command hands to its stages; it takes files (`download`) and copies them in the background (`upload`).
Imports system, config, storage and training's record of decisions; no stage imports it.
"""
