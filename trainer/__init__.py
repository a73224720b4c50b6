"""The offline half: distils logged groups into a policy that needs one draw, measures it and gates it."""
