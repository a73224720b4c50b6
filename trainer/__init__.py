"""The training half of bonbon: distils logged groups into a policy that needs fewer draws, measures it and gates it."""
