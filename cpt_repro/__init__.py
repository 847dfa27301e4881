"""cpt_repro: replicates Gupta et al. 2023 and Ibrahim et al. 2024 on the continual pre-training of models."""

__version__ = "0.1.0"
