"""`exbias bench`: does a method cure? Tasks whose true distribution is known, tiny models, equal tokens, several seeds."""
