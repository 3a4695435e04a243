"""dSprites drawn once a process: the whole set takes 377 MB."""

from functools import cache

from isa.data import FactorDataset, load


@cache
def drawn() -> FactorDataset:
    return load("dsprites")
