"""The only door to MLflow: what is recorded, shipped and registered."""
