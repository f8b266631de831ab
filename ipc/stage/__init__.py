"""The process harness of a stage: start-up, one poll over its links, statistics, stopping."""
