"""A stage that takes the place of that of `methods`: the teacher's rationales go to a judge."""
