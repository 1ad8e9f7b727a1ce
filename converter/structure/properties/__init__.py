"""What a width allows by the ops that touch it: its class, its growth, its name, its gates."""
