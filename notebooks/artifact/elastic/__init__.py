"""ElastiLM's offline part: order the units of a model by importance, cut levels, and recover what was cut."""
