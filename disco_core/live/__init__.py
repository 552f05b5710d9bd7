"""The plan and the rule over endpoints that produce tokens."""
