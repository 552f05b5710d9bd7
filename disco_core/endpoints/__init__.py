"""Things that produce tokens: a model in this process, a server, a recorded timeline."""
