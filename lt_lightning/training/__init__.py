"""Everything that is Lightning: the callback, the retraining of a ticket, the classifier, schedules, processes."""
