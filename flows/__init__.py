"""Order, place and repetition of the stages: what Prefect runs, and what people read at the end."""
