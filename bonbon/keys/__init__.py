"""API keys: who may call, for which tenant, and with which scopes."""
