"""The only door to DVC: its graph, lock files, cache and remotes."""
