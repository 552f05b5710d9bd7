"""The plan and the rule over endpoints that generate tokens."""
