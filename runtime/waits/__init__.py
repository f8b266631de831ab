"""Why steps waited for experts: the spans of a timeline in, the longest waits with what led to each out."""
