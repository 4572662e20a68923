"""Networks: the backend, loading, predicting and scoring."""
