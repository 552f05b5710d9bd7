"""ElastiLM's offline part: order the units of a model by importance, cut levels, recover what was cut,
and train the choice between them."""
