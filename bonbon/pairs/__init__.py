"""The pair log: every scored group, durable before its answer is sent."""
