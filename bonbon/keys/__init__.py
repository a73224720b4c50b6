"""API keys: who may call, for which tenant, and what for."""
