"""How fast devices train where nothing like it ever ran; imported by who plans, and so without Keras."""

FLOPS_PER_STEP = 3  # forward passes that a training step is worth: back takes twice as long as forth
# Operations per second of a training: the middle of what the models of params.yaml reach on 2 cores
# (benchmarks/RESULTS.md). There is none for other devices.
RATES = {"cpu": 4e10}
