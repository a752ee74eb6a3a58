"""When does compression pay? The time of a step, predicted from what its parts take."""
