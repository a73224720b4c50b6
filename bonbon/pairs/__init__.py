"""The pair log: stores every scored group durably before its answer is sent."""
