"""Object stores: every kind of request, what a store that lies looks like, and that nothing of ours is left in it."""
