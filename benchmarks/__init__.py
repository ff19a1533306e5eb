"""What recording costs, beside what it replaces, in the same run."""
