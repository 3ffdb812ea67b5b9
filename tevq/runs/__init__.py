"""Run folders, the files in them, and the device a run uses."""
