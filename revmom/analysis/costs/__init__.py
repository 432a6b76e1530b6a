"""What a function costs: operations, memory, rounds and reach."""
