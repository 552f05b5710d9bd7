"""ElastiLM's offline part: order units by importance, cut levels, recover what was cut, train the decision."""
