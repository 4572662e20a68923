"""This machine: its processes, memory, signals and progress."""
