"""`exbias compare`: several methods at equal compute, evaluated alike, in one report; see `docs/comparing.md`."""
