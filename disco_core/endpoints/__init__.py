"""Endpoints, which generate tokens: a model in this process, or a server."""
