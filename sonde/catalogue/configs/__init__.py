"""Hugging Face `config.json` -> Model: one small reader per family of layer, and a table of architectures.

fields.py        typed access to a config, with errors that name the field
attention.py     multi-head, grouped-query, sliding, sparse and latent attention
linear.py        recurrences: Mamba-2, gated delta net, Kimi delta, lightning
feedforward.py   dense layers and mixtures of experts
towers.py        weights that text does not run: vision towers
quantisation.py  the precision that the weights are published in
families.py      the table: architecture -> readers and defaults
reader.py        puts the parts together
"""

from sonde.catalogue.configs.reader import read_config

__all__ = ["read_config"]
