"""From run files to tables, statistics and claims."""
