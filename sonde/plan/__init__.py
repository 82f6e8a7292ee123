"""From a scenario to a plan: bounds, candidates, simulation, search, frontier."""
