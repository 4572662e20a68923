"""What stages and flows share, by concern; it imports neither."""

from pathlib import Path

CODE = Path(__file__).resolve().parents[1]  # the folder that has the packages of this checkout
PACKAGES = ("flows", "stages", "convoy")
