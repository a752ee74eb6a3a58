"""Does training get shorter? Accuracy against steps, seconds a step behind a link, and the time that they come to."""
