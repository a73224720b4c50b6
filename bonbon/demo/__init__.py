"""The whole loop on models small enough for any machine."""
